"""A neuron's page, as data: its scores, what it fires on, what it writes, which masks have it.

What needs the model is measured once and kept; scores and masks are read from the store
each time, since there may be more of them. Reading a page that is kept loads no torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field

from analysis.captured import Captured, load_moments, read_scored
from analysis.identify import named_scores, read_sets
from analysis.requests import IdentifyRequest
from analysis.scores.table import ALWAYS, Scored, score_moments
from analysis.store import Store
from toolkit.capture.moments import Vector
from toolkit.errors import SafeNeuronError
from toolkit.masks import ModelInfo, Record, read_mask
from toolkit.models.sources import resolve
from toolkit.neurons import NeuronSet
from toolkit.progress import Progress, silent

if TYPE_CHECKING:
    from toolkit.models.load import LoadedModel
    from toolkit.neuron_view import Trace

SCHEMA: Final = "safeneuron.neuron/1"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SIDES = ("harmful", "harmless")
# The fields of a request that change what is measured, besides the model and the prompts.
DEPENDS = (
    *("layer", "neuron", "position", "dtype"),
    *("prompts_shown", "tokens_shown", "neighbours"),
)


class NeuronRequest(IdentifyRequest):
    """Look at one neuron; the prompts, the position and the scores are identify's."""

    layer: Annotated[int, Field(ge=0)]
    neuron: Annotated[int, Field(ge=0)]
    prompts_shown: Annotated[int, Field(ge=1, le=100)] = 5
    tokens_shown: Annotated[int, Field(ge=1, le=1000)] = 15
    neighbours: Annotated[int, Field(ge=1, le=1000)] = 10


class Distribution(Record):
    """The neuron at the token position over one side's prompts."""

    mean: float
    std: float = Field(description="of the prompts, divided by their number less one")
    quantiles: dict[str, float]
    values: list[float] = Field(description="prompt by prompt, in their order")


class Token(Record):
    """One token of a prompt, and why it does not count where it doesn't."""

    text: str
    activation: float
    left_out: Literal["template", "first", "sink"] | None = None


class Strong(Record):
    """A prompt on which the neuron fires, by the strongest token that counts."""

    side: Literal["harmful", "harmless"]
    index: int = Field(description="in the prompt set")
    activation: float
    token: int = Field(description="where the strongest token stands")
    tokens: list[Token]


class Effect(Record):
    """A token of the vocabulary and what the neuron at 1 adds to its logit."""

    token: str
    id: int
    logit: float


class Neighbour(Record):
    """A neuron with a like output column."""

    layer: int
    neuron: int
    cosine: float


class Measured(Record):
    """What was measured on the model, schema ``safeneuron.neuron/1``."""

    schema_: Literal["safeneuron.neuron/1"] = Field(default=SCHEMA, alias="schema")
    layer: int
    neuron: int
    position: Literal["last", "mean", "max"]
    rule: str = Field(description="which tokens count")
    distributions: dict[str, Distribution]
    strongest: list[Strong]
    promoted: list[Effect]
    suppressed: list[Effect]
    neighbours: list[Neighbour]


class Standing(Record):
    """The neuron under one score; rank 1 is the highest."""

    score: str
    value: float
    p: float | None = None
    rank: int
    of: int
    percentile: float = Field(description="share of the other neurons that score lower, in %")
    rank_in_layer: int
    of_layer: int


class Membership(Record):
    """A stored mask, and whether the neuron is in it."""

    entry: str
    title: str
    method: str
    count: int
    member: bool
    parts: list[str] = Field(default_factory=list, description="the scores that chose it")


class NeuronPage(Record):
    """Everything known of one neuron."""

    model: ModelInfo
    layer: int
    neuron: int
    scores: list[Standing]
    masks: list[Membership]
    measured: Measured
    reused: bool = Field(description="whether no model had to be run")


def neuron_page(
    request: NeuronRequest, progress: Progress = silent, store: Store | None = None
) -> NeuronPage:
    """Everything known of one neuron.

    Scores are ES, SAS and t, those of ``request.also``, and every one that is in the store
    for this model, these prompts and this position.

    Raises:
        SafeNeuronError: no such neuron, or bad input.
    """
    store = store or Store()
    wanted = named_scores(request.also)
    evidence = Captured(request, resolve(request.model), read_sets(request), progress, store)
    captured = evidence.moments()
    info = ModelInfo.model_validate(captured.summary["model"] | {"source": request.model})
    NeuronSet(info.neurons_per_layer, {request.layer: [request.neuron]})  # says what is wrong
    sides = [load_moments(captured, side) for side in SIDES]
    scores = {
        name: score_moments(name, sides[0], sides[1], info.neurons_per_layer) for name in ALWAYS
    }
    scores |= _stored_scores(evidence)
    scores |= {leaf.name: evidence.scored(leaf) for leaf in wanted}
    measured = _measured(request, evidence)
    return NeuronPage(
        model=info,
        layer=request.layer,
        neuron=request.neuron,
        scores=[
            standing(name, scored, info.neurons_per_layer, request.layer, request.neuron)
            for name, scored in scores.items()
        ],
        masks=memberships(store, info, request.layer, request.neuron),
        measured=measured,
        reused=not evidence.ran,
    )


def standing(name: str, scored: Scored, widths: Sequence[int], layer: int, neuron: int) -> Standing:
    """Where a neuron stands among all others, and in its layer.

    Args:
        name: of the score.
        scored: of every neuron.
        widths: neurons in each layer.
        layer: which.
        neuron: which of its layer.
    """
    start = sum(widths[:layer])
    own = scored.values[start : start + widths[layer]]
    value = own[neuron]
    others = len(scored.values) - 1
    lower = int((scored.values < value).sum())
    return Standing(
        score=name,
        value=float(value),
        p=None if scored.p is None else float(scored.p[start + neuron]),
        rank=1 + int((scored.values > value).sum()),
        of=len(scored.values),
        percentile=100 * lower / others if others else 100.0,
        rank_in_layer=1 + int((own > value).sum()),
        of_layer=widths[layer],
    )


def memberships(store: Store, model: ModelInfo, layer: int, neuron: int) -> list[Membership]:
    """Every stored mask of this model, newest first."""
    found = []
    for entry in store.entries("identify"):
        if entry.summary.get("fingerprint") != model.fingerprint:
            continue
        try:
            mask = read_mask(entry.file("mask.json"))
        except SafeNeuronError:
            continue  # damaged: set aside when somebody asks for it
        parts = [name for name in mask.parts if (layer, neuron) in mask.part(name)]
        found.append(
            Membership(
                entry=entry.key,
                title=entry.title,
                method=mask.method.name,
                count=mask.count,
                member=(layer, neuron) in mask.neuron_set(),
                parts=parts,
            )
        )
    return found


def _stored_scores(evidence: Captured) -> dict[str, Scored]:
    """The scores that were measured on this model over these prompts, the newest of a name."""
    found: dict[str, Scored] = {}
    harmful, harmless = (evidence.sets[side].sha256 for side in SIDES)
    utility = evidence.sets.get("utility", evidence.sets["harmless"]).sha256
    for entry in evidence.store.entries("score"):
        seen, name = entry.recipe["evidence"], entry.summary["name"]
        same = (
            seen["fingerprint"] == evidence.folder.fingerprint
            and seen.get("harmless", harmless) == harmless
            and seen.get("position", evidence.request.position) == evidence.request.position
            and seen["harmful"] == (utility if name.endswith("@utility") else harmful)
        )
        if not same or name in found:
            continue
        whole = evidence.store.get("score", entry.key)
        if whole is not None:
            found[name] = read_scored(whole)
    return found


def _measured(request: NeuronRequest, evidence: Captured) -> Measured:
    sets = {side: evidence.sets[side] for side in SIDES}
    recipe = {
        "fingerprint": evidence.folder.fingerprint,
        "tokenizer": evidence.folder.tokenizer,
        **{side: prompts.sha256 for side, prompts in sets.items()},
        **{name: getattr(request, name) for name in DEPENDS},
        "schema": SCHEMA,
    }
    if entry := evidence.store.find("neuron", recipe):
        return Measured.model_validate_json(entry.file("neuron.json").read_text("utf-8"))
    measured = _measure(request, evidence)

    def write(scratch: Path) -> None:
        (scratch / "neuron.json").write_text(measured.model_dump_json(by_alias=True), "utf-8")

    title = f"neuron {request.neuron} of layer {request.layer} of {request.model}"
    summary = {"model": request.model, "layer": request.layer, "neuron": request.neuron}
    evidence.store.save("neuron", recipe, title, summary, write)
    return measured


def _measure(request: NeuronRequest, evidence: Captured) -> Measured:
    from toolkit.neuron_view import RULE, nearest, trace_neuron, unembedded

    loaded, layer, neuron = evidence.loaded, request.layer, request.neuron
    sets = {side: evidence.sets[side] for side in SIDES}
    count = evidence.counter("trace", sum(map(len, sets.values())))
    traces = {
        side: trace_neuron(loaded, prompts.texts, layer, neuron, request.batch_size, count)
        for side, prompts in sets.items()
    }
    logits = unembedded(loaded, layer, neuron)
    order = np.argsort(-logits, kind="stable")
    best = [
        (side, index, trace)
        for side, found in traces.items()
        for index, trace in enumerate(found)
        if trace.counted.any()
    ]
    best.sort(key=lambda one: -one[2].activations[one[2].counted].max())
    return Measured(
        layer=layer,
        neuron=neuron,
        position=request.position,
        rule=RULE,
        distributions={
            side: _distribution(np.array([trace.at(request.position) for trace in found]))
            for side, found in traces.items()
        },
        strongest=[_strong(loaded, *one) for one in best[: request.prompts_shown]],
        promoted=_effects(loaded, logits, order[: request.tokens_shown]),
        suppressed=_effects(loaded, logits, order[::-1][: request.tokens_shown]),
        neighbours=[
            Neighbour(layer=other, neuron=index, cosine=cosine)
            for other, index, cosine in nearest(loaded, layer, neuron, request.neighbours)
        ],
    )


def _distribution(values: Vector) -> Distribution:
    cuts = np.quantile(values, QUANTILES)
    return Distribution(
        mean=float(values.mean()),
        std=float(values.std(ddof=1)),
        quantiles={f"{q:g}": float(cut) for q, cut in zip(QUANTILES, cuts, strict=True)},
        values=values.tolist(),
    )


def _strong(loaded: "LoadedModel", side: Any, index: int, trace: "Trace") -> Strong:
    counted = np.where(trace.counted, trace.activations, -np.inf)
    token = int(counted.argmax())
    tokens = []
    for place, (number, value) in enumerate(zip(trace.ids, trace.activations, strict=True)):
        reason: Literal["template", "first", "sink"] | None = None
        if not trace.counted[place]:
            reason = "first" if place == 0 else "sink"
            reason = reason if trace.own[place] else "template"
        text = loaded.tokenizer.decode([number])
        tokens.append(Token(text=text, activation=float(value), left_out=reason))
    return Strong(
        side=side, index=index, activation=float(counted[token]), token=token, tokens=tokens
    )


def _effects(loaded: "LoadedModel", logits: Vector, ids: np.ndarray) -> list[Effect]:
    return [
        Effect(token=loaded.tokenizer.decode([int(i)]), id=int(i), logit=float(logits[i]))
        for i in ids
    ]
