"""Recipes: how a model is aligned, as frozen configurations. No torch.

==============  ================================================  ======================
recipe          what trains, on what                              source
==============  ================================================  ======================
sft             all block weights; the chosen answers             a baseline
dpo             all block weights; preferences (Eq. 12)           RLHF-Safety, Sec. 4.1
safeneuron      all but the mask's neurons; preferences           Sec. 3.3, Algorithm 1
random-freeze   all but as many random neurons in each layer      control, ours
sn-tune         the mask's neurons alone; the chosen answers      Zhao et al., ICLR 2025
rsn-tune        the same without those that all text needs        Zhao et al., ICLR 2025
neuronguard     all block weights; refusals, whole and without    2608.23959, alike
                the neurons found last
adaptive        as safeneuron, with fresh draws of neurons        ours
                removed or held at every step
==============  ================================================  ======================

Each has two presets. ``paper`` holds the numbers that the source states; what it leaves
open is ours, as each recipe says. ``two-core`` ends within minutes on a small model.

Algorithm 1 (step 3) zeroes the frozen neurons in the policy's forward pass, the prose of
Sec. 3.3 freezes only: ``zero`` chooses. Whether the reference model runs under the same
hook is open too: ``reference``. The defaults, zeroed with a whole reference, are what made
the trained model stand an attack in our trials.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

RecipeName = Literal[
    "sft",
    "dpo",
    "safeneuron",
    "random-freeze",
    "sn-tune",
    "rsn-tune",
    "neuronguard",
    "adaptive",
]
RECIPE_NAMES: tuple[RecipeName, ...] = get_args(RecipeName)
PresetName = Literal["two-core", "paper"]
Reference = Literal["whole", "zeroed"]
OptimiserName = Literal["adamw", "sgd", "adafactor", "adamw-8bit"]


@dataclass(frozen=True)
class Numbers:
    """What a preset sets; every one can be overridden.

    Args:
        learning_rate: at its peak; cosine decay to zero.
        weight_decay: on every matrix that trains; norms and biases have none.
        steps: optimiser steps, where ``epochs`` is None.
        batch_size: pairs a step.
        epochs: passes over the pairs, instead of ``steps``.
        beta: of DPO.
        sft_weight: of the supervised loss on the chosen side, beside DPO's 1.
        kl_weight: of the divergence between the pruned and the whole model (neuronguard).
        find_every: steps between two searches for the neurons, where a recipe looks again.
        lora_rank, lora_alpha: of an adapter; at rank 0 the weights themselves train.
    """

    learning_rate: float
    weight_decay: float = 0.05
    steps: int = 72
    batch_size: int = 8
    epochs: float | None = None
    beta: float = 0.1
    sft_weight: float = 0.0
    kl_weight: float = 1.0
    find_every: int = 12
    lora_rank: int = 0
    lora_alpha: int = 64


# Sec. 3.3 and Appendix B: 5e-6, cosine, 0.05, beta 0.1, 3 epochs. Steps and batch are open.
_PAPER = Numbers(5e-6, epochs=3.0, find_every=200)
_TWO_CORE = Numbers(4e-5, sft_weight=0.2)


@dataclass(frozen=True)
class Recipe:
    """A way to align a model.

    Args:
        name: as the command line has it.
        title: in words.
        loss: ``dpo`` on preferences; ``sft`` on the chosen answers; ``guard`` on them both
            whole and pruned.
        mask: what becomes of the mask's neurons: ``unused``, held (``freeze``), or trained
            and nothing else (``train``).
        zero: zero the frozen neurons in the policy's forward pass unless asked otherwise.
        searches: looks for the neurons again while it trains.
        two_core, paper: its presets.
    """

    name: RecipeName
    title: str
    loss: Literal["dpo", "sft", "guard"]
    mask: Literal["unused", "freeze", "train"]
    zero: bool
    searches: bool
    two_core: Numbers
    paper: Numbers

    def numbers(self, preset: PresetName) -> Numbers:
        """The preset called so."""
        return self.paper if preset == "paper" else self.two_core

    @property
    def needs_mask(self) -> bool:
        """Whether it can't do without a mask."""
        return self.mask != "unused"

    @property
    def draws(self) -> bool:
        """Whether it draws what it trains on and without, as its mixture says."""
        return self.searches and self.loss == "dpo"


RECIPES: dict[RecipeName, Recipe] = {
    recipe.name: recipe
    for recipe in (
        # The paper has no such arm: its preset is the paper's DPO with another loss.
        Recipe(
            "sft", "SFT on the chosen answers", "sft", "unused", False, False, _TWO_CORE, _PAPER
        ),
        Recipe("dpo", "Plain DPO", "dpo", "unused", False, False, _TWO_CORE, _PAPER),
        Recipe(
            "safeneuron",
            "SafeNeuron: DPO with the mask frozen",
            "dpo",
            "freeze",
            True,
            False,
            _TWO_CORE,
            _PAPER,
        ),
        Recipe(
            "random-freeze",
            "Control: DPO with random neurons frozen",
            "dpo",
            "freeze",
            True,
            False,
            _TWO_CORE,
            _PAPER,
        ),
        # About 50 documents, 1 epoch, 1e-6, no decay (7.4); a document a step is our reading.
        # The two-core rate is ten times the usual one over, since one per cent trains.
        Recipe(
            "sn-tune",
            "SN-Tune: train the mask's neurons alone",
            "sft",
            "train",
            False,
            False,
            Numbers(2e-4, weight_decay=0.0),
            Numbers(1e-6, weight_decay=0.0, steps=50, batch_size=1),
        ),
        Recipe(
            "rsn-tune",
            "RSN-Tune: without the neurons that all text needs",
            "sft",
            "train",
            False,
            False,
            Numbers(2e-4, weight_decay=0.0),
            Numbers(1e-6, weight_decay=0.0, steps=50, batch_size=1),
        ),
        # LoRA r 32, alpha 64, 10 epochs, 1e-5, searched every 200 steps (6.1). Its gradient
        # projection against a task is left out: there is no task here.
        Recipe(
            "neuronguard",
            "NeuronGuard-like: refuse without the neurons found last",
            "guard",
            "unused",
            False,
            True,
            Numbers(4e-5),
            Numbers(1e-5, weight_decay=0.0, epochs=10.0, find_every=200, lora_rank=32),
        ),
        Recipe(
            "adaptive",
            "Adaptive: frozen, searched again, fresh neurons removed each step",
            "dpo",
            "freeze",
            True,
            True,
            # Where neurons are missing the chosen answer has to be learned, not only preferred.
            replace(_TWO_CORE, learning_rate=8e-5, sft_weight=1.0, find_every=12),
            _PAPER,
        ),
    )
}


@dataclass(frozen=True)
class Mixture:
    """What ``adaptive`` draws: for each pair and step what the policy is without, and the pairs.

    Args:
        whole: share of pairs that see the whole model, so that it stays what it is.
        rounds: share that see it without the first rounds of an attacker who looks again;
            how many rounds is drawn, all of a round go (deterministic top).
        share: share that see it without a random part of the head of the ranking.
        hold: share that see a few neurons held at constants, as the single-neuron attack
            holds one.
        probe: share that see it without what NeuroStrike's probe finds.
        search_rounds: rounds that each search plays through.
        head: how much of the model the head of the ranking is, 0 to 1.
        parts: least and greatest part of the head that is removed at once.
        candidates: neurons that holding draws from.
        held: most neurons held at once.
        factors: constants, in units of a neuron's mean activation on harmful prompts.
        prompts: prompts a side that each search reads.
        refusing: share of the pairs shown that prefer a refusal, 0 to 1; None for what the
            pairs have.
        frames: chance that a prompt is shown with a sentence before it, and with one after it
            (:mod:`toolkit.train.frames`), so that its form does not give it away.
    """

    whole: float = 0.15
    rounds: float = 0.3
    share: float = 0.4
    hold: float = 0.15
    probe: float = 0.0
    search_rounds: int = 5
    head: float = 0.1
    parts: tuple[float, float] = (0.25, 1.0)
    candidates: int = 24
    held: int = 3
    factors: tuple[float, ...] = (-16.0, -8.0, -4.0, -2.0, -1.0, 0.0, 2.0)
    prompts: int = 24
    refusing: float | None = None
    frames: float = 0.0


SHARES = ("whole", "rounds", "share", "hold", "probe", "head", "refusing", "frames")
COUNTS = ("search_rounds", "candidates", "held", "prompts")


def mixture_with(changed: Mapping[str, float]) -> Mixture:
    """The usual mixture with some of its numbers changed.

    Args:
        changed: any of :data:`SHARES`, 0 to 1, and :data:`COUNTS`, 1 or more.

    Raises:
        ValueError: a name that is none of them, or a number out of range.
    """
    given: dict[str, Any] = {}
    for name, value in changed.items():
        if name in SHARES:
            if not 0 <= value <= 1:
                raise ValueError(f"mix {name} is {value:g}; give a share from 0 to 1")
            given[name] = float(value)
        elif name in COUNTS:
            if value < 1 or value != int(value):
                raise ValueError(f"mix {name} is {value:g}; give a whole number from 1")
            given[name] = int(value)
        else:
            raise ValueError(f"mix has no {name}; it has {', '.join((*SHARES, *COUNTS))}")
    made = replace(Mixture(), **given)
    if not made.whole + made.rounds + made.share + made.hold + made.probe:
        raise ValueError("mix draws nothing; leave whole, rounds, share, hold or probe above 0")
    if not made.head:
        raise ValueError("mix head is 0; give a share above it")
    return made


@dataclass(frozen=True)
class Settings:
    """A recipe with its numbers; all of it is recorded with the result.

    Args:
        recipe: which.
        zero: zero the frozen neurons in the policy's forward pass while training.
        steps: optimiser steps.
        batch_size: pairs a step, over all processes and accumulated parts.
        learning_rate, weight_decay, beta, sft_weight, kl_weight, find_every, lora_rank,
            lora_alpha: see :class:`Numbers`.
        max_length: tokens of a prompt and one answer.
        save_every: steps between checkpoints.
        seed: of data order and everything random.
        dtype: of the arithmetic; weights and optimiser stay in float32.
        reference: DPO's reference model, ``whole`` or with the frozen neurons ``zeroed``.
        optimiser: one of :data:`OptimiserName`.
        micro_batch: pairs at a time in one process; None for all at once. The rest of the
            batch is accumulated.
        max_grad_norm: gradients are clipped to it; 0 for never.
        mixture: of ``adaptive``.
    """

    recipe: RecipeName
    zero: bool
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    beta: float
    sft_weight: float
    max_length: int
    save_every: int
    seed: int
    dtype: Literal["float32", "bfloat16"]
    reference: Reference = "whole"
    optimiser: OptimiserName = "adamw"
    micro_batch: int | None = None
    max_grad_norm: float = 1.0
    kl_weight: float = 1.0
    find_every: int = 12
    lora_rank: int = 0
    lora_alpha: int = 64
    mixture: Mixture = field(default_factory=Mixture)

    @property
    def kind(self) -> Recipe:
        """The recipe that the numbers are for."""
        return RECIPES[self.recipe]


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a request leaves open with its recipe's preset.

    Steps that are given take the place of the preset's epochs.

    Args:
        values: fields of a request; what is missing or None is open.
    """
    given = {name: value for name, value in values.items() if value is not None}
    recipe = RECIPES.get(given.get("recipe", "safeneuron"))
    if recipe is None:
        return given  # validation names the choices
    preset: dict[str, Any] = dict(vars(recipe.numbers(given.get("preset", "two-core"))))
    if "steps" in given:
        preset["epochs"] = None
    # What no preset fills stays as it is: a None there is somebody's choice.
    return {**values, "zero": recipe.zero, **preset, **given}
