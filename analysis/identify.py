"""Identify the safety neurons (SafeNeuron, Sec. 3.2): measure, score, select, remember."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from analysis.captured import Captured, in_words, load_moments
from analysis.expressions import Leaf, parse
from analysis.requests import IdentifyRequest
from analysis.scores.registry import find_score
from analysis.scores.table import score_table
from analysis.select import Selection, select_parts
from analysis.store import About, Entry, Store
from analysis.tables import write_parquet
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo, ModelInfo, read_mask
from toolkit.models.sources import resolve
from toolkit.progress import Progress, silent
from toolkit.prompt_sets import PromptSet
from toolkit.prompts import read_prompts

if TYPE_CHECKING:
    from analysis.captured import Loader


@dataclass(frozen=True)
class Identified:
    """What ``identify`` found, and whether no model had to be run for it."""

    entry: Entry
    mask: MaskFile
    reused: bool


def identify(
    request: IdentifyRequest,
    progress: Progress = silent,
    store: Store | None = None,
    load: "Loader | None" = None,
) -> Identified:
    """Find a model's safety neurons.

    The expensive parts, what scores read and the scores, are stored by themselves:
    another method or threshold over the same prompts runs no model either.

    Args:
        request: what is asked for.
        progress: hears of the work.
        store: where results are kept.
        load: loads the model where one has to be run; a caller that asks for many
            identifications of one model keeps it loaded.

    Raises:
        SafeNeuronError: bad input, before anything is written; prompts on which no neuron
            varies; or no neuron that passes.
    """
    store = store or Store()
    selection = request.selection()
    wanted = list(dict.fromkeys([*selection.scores, *named_scores(request.also)]))
    evidence = Captured(request, resolve(request.model), read_sets(request), progress, store, load)
    for leaf in wanted:
        evidence.subject(leaf)  # says what is missing before any model is run
        if find_score(leaf.score).reads == "change":
            _ = evidence.base_folder
    whole = bool(request.bootstrap) or any(
        find_score(leaf.score).reads == "activations" for leaf in wanted
    )
    captured = evidence.moments(whole=whole)
    scores = {leaf.name: evidence.score_entry(leaf) for leaf in wanted if leaf.side != "contrast"}
    recipe = {
        "moments": captured.key,
        "method": request.method,
        "parameters": selection.parameters(),
        "source": request.model,
        "scores": {name: entry.key for name, entry in scores.items()},
        "contrasts": [leaf.name for leaf in wanted if leaf.side == "contrast"],
    }
    with store.computing("identify", recipe) as there:
        entry = there or _select_and_save(selection, captured, evidence, wanted, recipe)
    return Identified(entry, read_mask(entry.file("mask.json")), not evidence.ran)


def read_sets(request: IdentifyRequest) -> dict[str, PromptSet]:
    """The request's prompts.

    Raises:
        SafeNeuronError: a set that can't be read, or holds fewer than two prompts; or the same
            prompts on both sides.
    """
    named = {"harmful": request.harmful, "harmless": request.harmless, "utility": request.utility}
    sets = {side: read_prompts(name) for side, name in named.items() if name is not None}
    if request.leave_out is not None:
        unwanted = read_prompts(request.leave_out)
        sets = {side: prompts.without(unwanted) for side, prompts in sets.items()}
    for side, prompts in sets.items():
        if len(prompts) < 2:
            few = "one" if prompts.prompts else "no"
            raise SafeNeuronError(
                f"{prompts.name} holds {few} {side} prompt; a variance needs at least two"
            )
    if set(sets["harmful"].texts) == set(sets["harmless"].texts):
        raise SafeNeuronError(
            f"{sets['harmful'].name} and {sets['harmless'].name} hold the same prompts; scores "
            "tell harmful ones from harmless ones: give two different sets"
        )
    return sets


def named_scores(names: Sequence[str]) -> list[Leaf]:
    """Scores by name, each with its side.

    Raises:
        SafeNeuronError: there is none of a name.
    """
    found = []
    for name in names:
        leaf = parse(name)
        if not isinstance(leaf, Leaf):
            raise SafeNeuronError(f"--also {name}: name scores, separated by commas")
        find_score(leaf.score)
        found.append(leaf)
    return found


def _select_and_save(
    selection: Selection,
    captured: Entry,
    evidence: Captured,
    wanted: list[Leaf],
    recipe: Mapping[str, object],
) -> Entry:
    request, sets = evidence.request, evidence.sets
    unsafe, safe = (load_moments(captured, side) for side in ("harmful", "harmless"))
    if not any(layer.m2.any() for layer in (*unsafe, *safe)):
        raise SafeNeuronError(
            f"no neuron varies from prompt to prompt at the {request.position} position; give "
            "prompts that differ, or another --position"
        )
    table = score_table(unsafe, safe, {leaf.name: evidence.scored(leaf) for leaf in wanted})
    model = ModelInfo.model_validate(captured.summary["model"] | {"source": request.model})
    parts = select_parts(table, model.neurons_per_layer, selection)
    neurons = reduce(or_, parts.values())
    if not len(neurons):
        asked = ", ".join(f"{name} {value}" for name, value in selection.parameters().items())
        less = "lower the thresholds, or choose a share with --top 0.01"
        remedy = "choose a larger share" if selection.by_share else less
        raise SafeNeuronError(f"no neuron passes {selection.method} with {asked}; {remedy}")
    parameters: dict[str, JsonValue] = selection.parameters() | {
        "position": request.position,
        "backend": request.backend,
        "dtype": request.dtype,
    }
    if "utility" in sets:
        parameters["utility"] = sets["utility"].sha256
    if any(find_score(leaf.score).reads == "change" for leaf in selection.scores):
        parameters["base"] = evidence.base_folder.fingerprint
    mask = MaskFile.of(
        neurons,
        model,
        MethodInfo(name=request.method, parameters=parameters),
        MaskPrompts(harmful=sets["harmful"].info(), harmless=sets["harmless"].info()),
        parts,
    )

    def write(scratch: Path) -> None:
        write_parquet(table, scratch / "scores.parquet")
        mask.write(scratch / "mask.json")

    return evidence.store.save(
        "identify",
        recipe,
        f"safety neurons of {request.model} by {request.method} at the {request.position} position",
        {
            "model": request.model,
            "fingerprint": model.fingerprint,
            "architecture": model.architecture,
            "widths": model.neurons_per_layer,
            "count": mask.count,
            "fraction": mask.fraction,
            "method": request.method,
            "position": request.position,
            "parameters": parameters,
            "harmful": sets["harmful"].name,
            "harmless": sets["harmless"].name,
            "scores": [leaf.name for leaf in wanted],
            "asked": request.model_dump(mode="json", exclude_defaults=True),
        },
        write,
        About(request.model, in_words(sets), _selected_by(selection)),
    )


def _selected_by(selection: Selection) -> str:
    """A selection in words, for a listing."""
    given = ", ".join(f"{name} {value}" for name, value in selection.parameters().items())
    return f"{selection.method} ({given})"
