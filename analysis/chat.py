"""Chat with a model whole, pruned and with random neurons removed, side by side.

What is removed is a mask, or a share of the neurons that a study's score ranks highest; the
random control has as many in each layer. All that asks is light; :func:`answer` runs a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from analysis.manifest import Entry
from analysis.requests import Request
from analysis.scores.registry import all_scores
from analysis.select import Selection, select
from analysis.store import Store
from toolkit.errors import SafeNeuronError
from toolkit.judge.refusal import Verdict, judge_refusal
from toolkit.masks import MaskFile, read_mask, require_fit
from toolkit.neurons import NeuronSet

if TYPE_CHECKING:
    from toolkit.models.load import LoadedModel

Arm = Literal["whole", "pruned", "random"]
ARMS: tuple[Arm, ...] = ("whole", "pruned", "random")
LONGEST = 20_000  # letters of one turn
MOST_TOKENS = 4096
KEY = r"^[0-9a-f]{4,64}$"


class ChatRequest(Request):
    """Load a model and answer what it is asked, until nobody asks any more."""

    model: str
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    idle: Annotated[float, Field(gt=0, le=86_400)] = Field(
        default=300.0, description="seconds without a question after which it ends"
    )
    force: bool = Field(default=False, description="use another model's mask")


class Said(Request):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    text: Annotated[str, Field(max_length=LONGEST)]


class Removal(Request):
    """What is removed from the pruned model, and as many of from the random one.

    Either a mask, or the share of the neurons that a score of a study ranks highest.
    """

    mask: Path | None = None
    study: Annotated[str, Field(pattern=KEY)] | None = Field(
        default=None, description="key of the study whose score ranks"
    )
    score: Annotated[str, Field(max_length=100)] = "sas"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.01
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="of the control")

    @model_validator(mode="after")
    def _one_of_them(self) -> "Removal":
        if (self.mask is None) == (self.study is None):
            raise ValueError("give a mask, or a study whose score ranks")
        return self


class Question(Request):
    """A user's turn, put to each arm with what was said in it before."""

    removal: Removal
    before: dict[Arm, tuple[Said, ...]] = Field(
        description="the arms asked, and the turns of each before this one"
    )
    prompt: Annotated[str, Field(min_length=1, max_length=LONGEST)]
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 128
    sample: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="seed to draw answers with; greedy when left out"
    )

    @model_validator(mode="after")
    def _asks_somebody(self) -> "Question":
        if not self.before or any(len(turns) > 200 for turns in self.before.values()):
            raise ValueError("ask at least one arm, after at most 200 turns")
        return self

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Who is asked, in the order they are shown."""
        return tuple(arm for arm in ARMS if arm in self.before)


@dataclass(frozen=True)
class Answered:
    """One arm's answer and what the refusal judge calls it."""

    text: str
    tokens: int
    verdict: Verdict
    why: str


def rankable(scores: Path) -> list[str]:
    """The scores of a study's table that its neurons can be ranked by.

    Raises:
        SafeNeuronError: the table is gone or damaged.
    """
    known = all_scores()
    try:
        names = pq.read_schema(scores).names
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(scores) from error
    return [name for name in names if name.partition("@")[0] in known]


def highest(scores: Path, widths: Sequence[int], score: str, share: float) -> NeuronSet:
    """The share of all neurons that a score ranks highest, of those that it may choose.

    Args:
        scores: a study's score table, of which little is read.
        widths: neurons in each layer.
        score: as :func:`rankable` lists them.
        share: of all neurons, 0 to 1.

    Raises:
        SafeNeuronError: the table has no such score, or is gone or damaged.
    """
    names = rankable(scores)
    if score not in names:
        raise SafeNeuronError(f"the study has no score {score[:40]!r}; it has {', '.join(names)}")
    try:
        table = pd.read_parquet(scores, columns=["layer", "neuron", "delta", score])
    except (OSError, ValueError) as error:
        raise _unreadable(scores) from error
    if len(table) != sum(widths):
        raise _unreadable(scores)
    return select(table, widths, Selection(method=score, top=share))


def _unreadable(scores: Path) -> SafeNeuronError:
    return SafeNeuronError(
        f"{scores} cannot be read; 'safeneuron cache verify' sets a damaged study aside, and "
        "identifying again makes it anew"
    )


def removed(removal: Removal, store: Store | None = None) -> tuple[NeuronSet, MaskFile]:
    """The neurons to remove, and a mask file that says whose they are.

    Raises:
        SafeNeuronError: no such study, score or mask.
    """
    if removal.mask is not None:
        mask = read_mask(removal.mask)
        return mask.neuron_set(), mask
    assert removal.study is not None
    entry = (store or Store()).get("identify", removal.study)
    if entry is None:
        raise SafeNeuronError(
            f"no study {removal.study[:12]} in the store; 'safeneuron cache' lists them"
        )
    mask = read_mask(entry.file("mask.json"))
    widths = mask.model.neurons_per_layer
    neurons = highest(entry.file("scores.parquet"), widths, removal.score, removal.share)
    return neurons, mask


def newest_study(model: str, store: Store | None = None) -> Entry:
    """The newest study of a model, by its source.

    Raises:
        SafeNeuronError: there is none.
    """
    entries = (store or Store()).entries("identify")
    found = next((entry for entry in entries if entry.summary.get("model") == model), None)
    if found is None:
        raise SafeNeuronError(f"no study of {model}; make one with 'safeneuron identify {model}'")
    return found


def answer(
    loaded: "LoadedModel",
    question: Question,
    on_text: Callable[[Arm, str], None],
    force: bool = False,
    store: Store | None = None,
) -> dict[Arm, Answered]:
    """Answer a question under each of its arms, all in one batch.

    Args:
        loaded: the model.
        question: what is asked of whom.
        on_text: hears the answers as they grow; what it raises ends them.
        force: use another model's neurons where the shapes agree.
        store: where the study is.

    Raises:
        SafeNeuronError: no such neurons, or not this model's; a conversation too long.
    """
    from toolkit.chat import Turn, converse
    from toolkit.intervene import Intervention
    from toolkit.rows import Plan

    arms = question.arms
    sets: dict[Arm, NeuronSet] = {}
    if set(arms) - {"whole"}:
        neurons, mask = removed(question.removal, store)
        require_fit(mask, loaded.info, loaded.folder.ancestors, force)
        sets = {"pruned": neurons, "random": neurons.random_like(question.removal.seed)}
    plans = [Plan((Intervention(sets[arm]),)) if arm in sets else Plan() for arm in arms]
    asked = [
        [
            *(Turn(said.role, said.text) for said in question.before[arm]),
            Turn("user", question.prompt),
        ]
        for arm in arms
    ]
    replies = converse(
        loaded,
        asked,
        plans,
        question.max_new_tokens,
        lambda row, new: on_text(arms[row], new),
        question.sample,
    )
    told: dict[Arm, Answered] = {}
    for arm, reply in zip(arms, replies, strict=True):
        judged = judge_refusal(reply.text)
        verdict: Verdict = "degenerate" if reply.broken else judged.verdict
        why = "the logits are not finite" if reply.broken else judged.why
        told[arm] = Answered(reply.text, reply.tokens, verdict, why)
    return told
