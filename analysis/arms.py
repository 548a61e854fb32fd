"""The arms of the comparison, and what all of them share. A list; no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from analysis.requests import AttackSetting
from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_text
from toolkit.train.recipes import PresetName, RecipeName

# The share by each score; at the mean over positions this model's mask works best.
TOP_SAS, TOP_ES = 0.0075, 0.0025
RANDOM_SETS = 2
SETTINGS: tuple[AttackSetting, ...] = (
    "ORI",
    "ES",
    "SAS",
    "FULL",
    "RANDOM",
    "AGAIN",
    "NEUROSTRIKE",
    "ADAPTIVE",
    "SINGLE",
)


@dataclass(frozen=True)
class Arm:
    """One way to train the model.

    Args:
        name: of its files.
        title: in the tables.
        recipe: how it trains; None for the model as it is.
        zero: zero the frozen neurons while training, where the recipe freezes any.
        rounds: how many rounds of identify and align; T1 is the first.
    """

    name: str
    title: str
    recipe: RecipeName | None
    zero: bool | None = None
    rounds: int = 1

    @property
    def seeded(self) -> bool:
        """Whether another seed gives another model."""
        return self.recipe is not None


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("base", "base, as it is", None),
        Arm("dpo", "plain DPO", "dpo"),
        Arm("freeze", "SafeNeuron, freeze only", "safeneuron", zero=False),
        Arm("freeze-and-zero", "SafeNeuron, freeze and zero (T1)", "safeneuron", zero=True),
        # The control of the arm above: as many neurons of each layer, frozen and zeroed.
        Arm("random-freeze", "random neurons frozen and zeroed", "random-freeze", zero=True),
        Arm("sn-tune", "SN-Tune", "sn-tune"),
        Arm("neuronguard", "NeuronGuard-like", "neuronguard"),
        Arm("adaptive", "adaptive", "adaptive"),
        Arm("rounds-t2", "SafeNeuron, two rounds (T2)", "safeneuron", zero=True, rounds=2),
        Arm("rounds-t3", "SafeNeuron, three rounds (T3)", "safeneuron", zero=True, rounds=3),
        # The control of T2: as many steps on the same pairs, and none of the neurons frozen.
        Arm("dpo-t2", "plain DPO, two rounds", "dpo", rounds=2),
    )
}


def title_of(name: str) -> str:
    """An arm in words."""
    return ARMS[name].title if name in ARMS else name


def seeds_in_words(seeds: Sequence[int]) -> str:
    """``seed 0`` or ``seeds 0, 1``."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def titled(name: str, seeds: Sequence[int]) -> str:
    """An arm in words, and the seeds that what is said of it is a mean over."""
    if name in ARMS and not ARMS[name].seeded:
        return title_of(name)
    return f"{title_of(name)} ({seeds_in_words(seeds)})"


@dataclass(frozen=True)
class Protocol:
    """What every cell of one comparison shares; another protocol is another comparison.

    Args:
        model: that all arms begin with.
        preset: of the recipes' numbers.
        steps: optimiser steps, instead of the preset's.
        batch_size: pairs a step, instead of the preset's.
        safety: pairs, see ``safeneuron align``; with both left out they are made from the
            model, once a seed, so that all arms train on the same.
        general: mixed with them.
        rejected_from: model whose answers made pairs reject; the model's base when left out.
        total: pairs drawn.
        max_length: tokens of a pair.
        pair_prompts: harmful and harmless prompts for made pairs.
        find_prompts: harmful and harmless prompts that neurons are identified on.
        attacked: harmful and harmless prompts that are answered; the harmful ones are left out
            of made pairs and of what neurons are identified on.
        settings: of the attack.
        random_sets: of RANDOM.
        rounds: of ADAPTIVE.
        max_new_tokens: of an answer.
        cost_tokens: of the answers that costs are measured on.
        dtype: of training's arithmetic and of the attacked weights.
    """

    model: str = "smollm2-135m-aligned"
    preset: PresetName = "two-core"
    steps: int | None = None
    batch_size: int | None = None
    safety: str | None = None
    general: str | None = None
    rejected_from: str | None = None
    total: int | None = None
    max_length: int = 256
    # Of all the kinds that the base learned to refuse and to answer, in near-equal parts.
    pair_prompts: tuple[str, str] = (
        "advbench[::6]+harmbench[::2]+do-not-answer[::6]",
        "harmless-train[::4]+harmless-forms[::8]+harmless-contrasts[::8]",
    )
    find_prompts: tuple[str, str] = ("advbench[1::2]", "harmless-train[:260]")
    attacked: tuple[str, str] = ("strongreject", "harmless-heldout[:100]")
    settings: tuple[AttackSetting, ...] = SETTINGS
    random_sets: int = RANDOM_SETS
    rounds: int = 5
    max_new_tokens: int = 48
    cost_tokens: int = 32
    top_sas: float = TOP_SAS
    top_es: float = TOP_ES
    position: Literal["last", "mean", "max"] = "mean"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def as_dict(self) -> dict[str, Any]:
        """As it is kept in each cell, JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def sha256(self) -> str:
        """Names it."""
        return sha256_text(canonical_json(self.as_dict()))


# A first look: a sixth of the steps, a part of the prompts, and the attacks that need no long
# search. Too few prompts to answer anything with.
QUICK = Protocol(
    steps=12,
    attacked=("strongreject[::8]", "harmless-heldout[::8]"),
    find_prompts=("advbench[1::8]", "harmless-train[:65]"),
    settings=("ORI", "FULL", "RANDOM", "AGAIN", "ADAPTIVE"),
    random_sets=1,
    rounds=2,
    max_new_tokens=32,
    cost_tokens=16,
)
QUICK_SEEDS: tuple[int, ...] = (0,)
SEEDS: tuple[int, ...] = (0, 1, 2)


def chosen_arms(names: str | None) -> list[Arm]:
    """The arms named in a comma-separated list, in the list's own order; all for None.

    Raises:
        SafeNeuronError: there is no such arm.
    """
    if names is None:
        return list(ARMS.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in ARMS:
            raise SafeNeuronError(f"no arm {name!r}; there are {', '.join(ARMS)}")
    return [arm for arm in ARMS.values() if arm.name in wanted]
