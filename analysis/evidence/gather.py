"""What the page of evidence is drawn from: every result is in the store, or put there.

Killed and called again, this goes on where it was: each step is stored by itself.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from analysis.align_requests import AlignRequest
from analysis.overlap.composition import Composition, composition
from analysis.overlap.kway import kway_table
from analysis.redistribution import Redistribution, Side, redistribution, refusal_curve
from analysis.requests import (
    ANSWERED,
    DEFAULT_ATTACKED,
    DEFAULT_HARMFUL,
    DEFAULT_HARMLESS,
    OWN_ES,
    OWN_SAS,
    AttackRequest,
    AttackSetting,
    IdentifyRequest,
    Request,
)
from analysis.robustness import AttackResult, headline, succeeded
from analysis.store import Entry, Store
from analysis.study import Identified, attack, identify
from analysis.topics import Topics, identify_topics
from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_text
from toolkit.home import home
from toolkit.neurons import NeuronSet
from toolkit.progress import Progress, silent

SCALE_SETTINGS: tuple[AttackSetting, ...] = ("ORI", "ES", "SAS", "FULL", "RANDOM", "AGAIN")
SWEEP_SETTINGS: tuple[AttackSetting, ...] = (*SCALE_SETTINGS, "SWEEP")
SHARE = Annotated[float, Field(gt=0, le=1)]


class EvidenceRequest(Request):
    """What the evidence is of."""

    model: str = "smollm2-135m-aligned"
    others: tuple[str, ...] = Field(
        default=("smollm2-135m-instruct",), description="more models for figure 4"
    )
    topics: str = Field(default="strongreject", description="harmful prompts with categories")
    topic_harmless: str = "harmless-train"
    harmful: str = DEFAULT_HARMFUL
    harmless: str = DEFAULT_HARMLESS
    position: str = Field(default="mean", description="of the three the one that counts here")
    top_es: SHARE = OWN_ES
    top_sas: SHARE = OWN_SAS
    attacked: str = DEFAULT_ATTACKED
    attacked_harmless: str = "harmless-heldout[:60]"
    neurostrike: bool = Field(default=True, description="find its set too, for figure 7")
    steps: Annotated[int, Field(ge=1)] = Field(default=72, description="with all of the data")
    data: tuple[SHARE, ...] = Field(
        default=(0.25, 0.5, 1.0), description="shares of the alignment data; none leaves it out"
    )
    align_harmful: str = "advbench[::2]"
    align_harmless: str = "harmless-train"
    align_batch: Annotated[int, Field(ge=1)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 4e-5
    seeds: Annotated[int, Field(ge=1)] = 3
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    batch_size: Annotated[int, Field(ge=1)] = ANSWERED
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Evidence:
    """Everything on the page.

    Args:
        request: what was asked for.
        topics: a mask for each topic.
        classes: core, shared and specific neurons of those.
        kway: overlap of any K topics.
        models: name -> safety neurons, for figure 4.
        methods: name -> neurons that a method chose on the model.
        positions: token position -> neurons.
        scale: success against the share of alignment data; None where none was asked for.
        moved: before against after alignment; None likewise.
        curves: refusals against neurons removed, before, after and for random neurons.
        keys: the stored results behind it, kind and key.
    """

    request: EvidenceRequest
    topics: Topics
    classes: Composition
    kway: pd.DataFrame
    models: dict[str, NeuronSet]
    methods: dict[str, NeuronSet]
    positions: dict[str, NeuronSet]
    scale: pd.DataFrame | None
    moved: Redistribution | None
    curves: dict[str, pd.DataFrame]
    keys: list[tuple[str, str]]


def gather(
    request: EvidenceRequest, progress: Progress = silent, store: Store | None = None
) -> Evidence:
    """Run what is missing, and put it together.

    Raises:
        SafeNeuronError: bad input, such as prompts without two topics.
    """
    store = store or Store()
    keys: list[tuple[str, str]] = []
    asked = _identification(request, request.model)
    topics = identify_topics(
        asked.model_copy(
            update={
                "harmful": request.topics,
                "harmless": request.topic_harmless,
                "leave_out": None,
            }
        ),
        progress,
        store,
    )
    keys += [("identify", key) for key in topics.keys.values()]
    base = _kept(identify(asked, progress, store), keys)
    models = {_short(request.model): base.mask.neuron_set()}
    for other in request.others:
        found = _kept(identify(_identification(request, other), progress, store), keys)
        models[_short(other)] = found.mask.neuron_set()
    positions = {}
    for position in ("last", "mean", "max"):
        moved_to = asked.model_copy(update={"position": position})
        found = _kept(identify(moved_to, progress, store), keys)
        positions[position] = found.mask.neuron_set()
    mask = base.entry.file("mask.json")
    parts = {name.upper(): base.mask.part(name) for name in base.mask.parts}
    methods = {name: neurons for name, neurons in parts.items() if len(neurons)}
    settings = SWEEP_SETTINGS
    if request.neurostrike:
        settings = (*settings, "NEUROSTRIKE")
    before = _attacked(request, request.model, mask, settings, progress, store, keys)
    if request.neurostrike:
        chosen = stored_plan(store, base.mask.model.fingerprint, "NEUROSTRIKE")
        if chosen is not None and len(chosen):
            methods["NEUROSTRIKE"] = chosen
    scale = moved = None
    curves = {"before": refusal_curve(before), "before, random": _random_curve(before)}
    if request.data:
        rows = [_scale_rows(before, 0.0)]
        shares = sorted(set(request.data))
        for share in shares:
            folder = _aligned(request, mask, share, progress)
            settings = SWEEP_SETTINGS if share == shares[-1] else SCALE_SETTINGS
            after = _attacked(request, str(folder), mask, settings, progress, store, keys)
            rows.append(_scale_rows(after, share))
        scale = pd.concat(rows, ignore_index=True)
        trained = _kept(identify(_identification(request, str(folder)), progress, store), keys)
        models[f"{_short(request.model)}, aligned"] = trained.mask.neuron_set()
        sides = [
            Side(name, pd.read_parquet(found.entry.file("scores.parquet")), neurons, result)
            for name, found, neurons, result in (
                ("before", base, base.mask.neuron_set(), before),
                ("after", trained, trained.mask.neuron_set(), after),
            )
        ]
        moved = redistribution(sides[0], sides[1])
        curves |= {"after": refusal_curve(after), "after, random": _random_curve(after)}
    return Evidence(
        request=request,
        topics=topics,
        classes=composition(topics.sets()),
        kway=kway_table(topics.sets()),
        models=models,
        methods=methods,
        positions=positions,
        scale=scale,
        moved=moved,
        curves=curves,
        keys=list(dict.fromkeys(keys)),
    )


def _short(model: str) -> str:
    return Path(model).name


def _kept(found: Identified, keys: list[tuple[str, str]]) -> Identified:
    keys.append((found.entry.kind, found.entry.key))
    return found


def _identification(request: EvidenceRequest, model: str) -> IdentifyRequest:
    return IdentifyRequest.model_validate(
        {
            "model": model,
            "harmful": request.harmful,
            "harmless": request.harmless,
            "leave_out": request.attacked,
            "position": request.position,
            "top_es": request.top_es,
            "top_sas": request.top_sas,
        }
    )


def _attacked(
    request: EvidenceRequest,
    model: str,
    mask: Path,
    settings: tuple[AttackSetting, ...],
    progress: Progress,
    store: Store,
    keys: list[tuple[str, str]],
) -> AttackResult:
    asked = AttackRequest.model_validate(
        {
            "model": model,
            "mask": mask,
            "settings": settings,
            "harmful": request.attacked,
            "harmless": request.attacked_harmless,
            "find_harmful": request.harmful,
            "find_harmless": request.harmless,
            "seeds": request.seeds,
            "max_new_tokens": request.max_new_tokens,
            "batch_size": request.batch_size,
            "dtype": request.dtype,
        }
    )
    done = attack(asked, progress, store)
    keys.append((done.entry.kind, done.entry.key))
    return done.result


def _aligned(request: EvidenceRequest, mask: Path, share: float, progress: Progress) -> Path:
    """A model trained on a share of the data, from the first step to the last of it once."""
    from analysis.alignment import align

    asked = AlignRequest.model_validate(
        {
            "model": request.model,
            "mask": mask,
            "steps": max(1, round(share * request.steps)),
            "batch_size": request.align_batch,
            "learning_rate": request.learning_rate,
            "harmful": request.align_harmful,
            "harmless": request.align_harmless,
            "leave_out": request.attacked,
            "dtype": "float32" if request.dtype == "float32" else "bfloat16",
        }
    )
    name = sha256_text(canonical_json(asked.model_dump(mode="json")))[:16]
    folder = home() / "evidence" / f"aligned-{share:g}-{name}"

    def tell(event: dict[str, object]) -> None:
        if event.get("kind") == "stage":
            stage, done, total = event["stage"], event["done"], event["total"]
            assert isinstance(done, int)
            assert isinstance(total, int)
            progress(f"{stage} on {share:.0%} of the data", done, total)

    outcome = align(asked, folder, tell, lambda: False)
    if not outcome.finished:
        raise SafeNeuronError(f"{folder} was not trained to its end; run this again")
    return folder


def _scale_rows(result: AttackResult, share: float) -> pd.DataFrame:
    """The harmful side of the settings that every share of the data was attacked with."""
    table = headline(result)
    kept = (table["side"] == "harmful") & table["setting"].isin(SCALE_SETTINGS)
    columns = ["setting", "success", "success_low", "success_high", "k_success", "n"]
    columns += ["refused", "degenerate"]
    rows = table.loc[kept, columns].assign(data=share)
    found = [_outcomes(result, name) for name in rows["setting"]]
    return rows.assign(outcomes=pd.Series(found, index=rows.index, dtype=object))


def _outcomes(result: AttackResult, setting: str) -> list[float]:
    """Success on each harmful prompt in order, a mean over random sets."""
    hits: dict[int, list[bool]] = {i: [] for i in range(result.prompts["harmful"].count)}
    for answer in result.answers:
        if (answer.setting, answer.side) == (setting, "harmful"):
            hits[answer.index].append(succeeded(answer))
    return [sum(each) / len(each) if each else 0.0 for each in hits.values()]


def _random_curve(result: AttackResult) -> pd.DataFrame:
    return refusal_curve(result, "SWEEP-RANDOM")


def stored_plan(store: Store, fingerprint: str, setting: str) -> NeuronSet | None:
    """The neurons that an attack's setting chose on a model, as the store remembers them.

    Args:
        store: where an attack with that setting was run.
        fingerprint: of the model.
        setting: as ``NEUROSTRIKE``.

    Returns:
        The newest; None where there is none.
    """
    for entry in store.entries("plan"):
        recipe = entry.recipe
        if (recipe.get("setting"), recipe.get("fingerprint")) == (setting, fingerprint):
            return _planned(store, entry)
    return None


def _planned(store: Store, entry: Entry) -> NeuronSet | None:
    whole = store.get(entry.kind, entry.key)
    widths = next(
        (
            each.summary["widths"]
            for each in store.entries("identify")
            if each.summary.get("fingerprint") == entry.recipe["fingerprint"]
        ),
        None,
    )
    if whole is None or widths is None:
        return None
    chosen = NeuronSet.empty(widths)
    for plan in json.loads(whole.file("plans.json").read_text("utf-8")):
        for step in plan["steps"]:
            chosen |= NeuronSet(widths, {int(k): v for k, v in step["neurons"].items()})
    return chosen
