"""The paper's method, read from top to bottom: identify the neurons, attack by removing them.

Each step takes a validated request and gives back a stored result. A result that is in
the store already is returned without loading a model.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import version
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from analysis.costs import Cost
from analysis.redteam import RedTeamResult, red_team_table
from analysis.requests import (
    FROM_MASK,
    OWN_ES,
    OWN_SAS,
    PAPER_SETTINGS,
    PARAMETERS,
    AttackRequest,
    AttackSetting,
    IdentifyRequest,
    RedTeamRequest,
)
from analysis.robustness import (
    AttackResult,
    Generation,
    MaskInfo,
    Side,
    attack_table,
    read_attack,
)
from analysis.scores.table import score_table
from analysis.select import Selection, select_parts
from analysis.store import About, Entry, Store
from analysis.tables import write_parquet
from toolkit.capture.moments import Moments
from toolkit.errors import SafeNeuronError
from toolkit.judge.refusal import VERSION as JUDGE
from toolkit.masks import (
    SITE,
    MaskFile,
    MaskPrompts,
    MethodInfo,
    ModelInfo,
    read_mask,
    require_fit,
)
from toolkit.models.sources import ModelFolder, resolve
from toolkit.over_refusal import read_over_refusal
from toolkit.progress import Progress, silent
from toolkit.prompts import PromptSet, read_prompts

if TYPE_CHECKING:
    from analysis.attacks.context import AttackContext
    from toolkit.models.load import LoadedModel

    Loader = Callable[[], LoadedModel]

SIDES: tuple[Side, Side] = ("harmful", "harmless")


@dataclass(frozen=True)
class Identified:
    """What ``identify`` found, and whether no model had to be run for it."""

    entry: Entry
    mask: MaskFile
    reused: bool


@dataclass(frozen=True)
class Attacked:
    """What ``attack`` counted, and whether it was in the store already."""

    entry: Entry
    result: AttackResult
    reused: bool


# --- Identify (paper Sec. 3.2) ---------------------------------------------------------


def identify(
    request: IdentifyRequest,
    progress: Progress = silent,
    store: Store | None = None,
    load: "Loader | None" = None,
) -> Identified:
    """Find a model's safety neurons.

    The expensive part, the moments of every neuron over both prompt sets, is stored by
    itself: another method or threshold over the same prompts runs no model either.

    Args:
        request: what is asked for.
        progress: hears of prompts captured.
        store: where results are kept.
        load: loads the model where one has to be run; a caller that asks for many
            identifications of one model keeps it loaded.

    Raises:
        SafeNeuronError: bad input, before anything is written.
    """
    store = store or Store()
    selection = request.selection()
    sets = {"harmful": read_prompts(request.harmful), "harmless": read_prompts(request.harmless)}
    for side, prompts in sets.items():
        if len(prompts) < 2:
            raise SafeNeuronError(
                f"{prompts.name} holds one {side} prompt; a variance needs at least two"
            )
    folder = resolve(request.model)
    captured, moments_reused = _moments(request, folder, sets, progress, store, load)
    recipe = {
        "moments": captured.key,
        "method": request.method,
        "parameters": selection.parameters(),
        "source": request.model,
    }
    with store.computing("identify", recipe) as there:
        entry = there or _select_and_save(request, selection, captured, sets, recipe, store)
    return Identified(entry, read_mask(entry.file("mask.json")), moments_reused)


def _moments(
    request: IdentifyRequest,
    folder: ModelFolder,
    sets: dict[str, PromptSet],
    progress: Progress,
    store: Store,
    load: "Loader | None",
) -> tuple[Entry, bool]:
    recipe = {
        "fingerprint": folder.fingerprint,
        "tokenizer": folder.tokenizer,
        "harmful": sets["harmful"].sha256,
        "harmless": sets["harmless"].sha256,
        "site": SITE,
        "position": request.position,
        "backend": request.backend,
        "dtype": request.dtype,
    }
    with store.computing("moments", recipe) as there:
        if there:
            return there, True
        return _capture(request, folder, sets, recipe, progress, store, load), False


def _capture(
    request: IdentifyRequest,
    folder: ModelFolder,
    sets: dict[str, PromptSet],
    recipe: Mapping[str, object],
    progress: Progress,
    store: Store,
    load: "Loader | None",
) -> Entry:
    """Run the model over both prompt sets and store the moments of its neurons."""
    import torch

    from toolkit.capture.backends import make_backend
    from toolkit.capture.base import capture_moments
    from toolkit.models.load import load_model

    loaded = load() if load else load_model(folder, dtype=getattr(torch, request.dtype))
    backend = make_backend(request.backend, loaded)
    total, done = sum(len(prompts) for prompts in sets.values()), 0

    def count(prompts: int) -> None:
        nonlocal done
        done += prompts
        progress("capture", done, total)

    progress("capture", 0, total)
    moments = {
        side: capture_moments(
            loaded, backend, prompts.texts, request.position, request.batch_size, count
        )
        for side, prompts in sets.items()
    }
    info = loaded.info

    def write(scratch: Path) -> None:
        arrays = {
            f"{side}.{layer}.{name}": np.ascontiguousarray(getattr(m, name))
            for side, layers in moments.items()
            for layer, m in enumerate(layers)
            for name in ("mean", "m2")
        }
        save_file(arrays, scratch / "moments.safetensors")

    counts = {side: len(prompts) for side, prompts in sets.items()}
    return store.save(
        "moments",
        recipe,
        f"activations of {request.model} at the {request.position} position, "
        f"{sets['harmful'].name} against {sets['harmless'].name}",
        {"model": info.model_dump(), "counts": counts},
        write,
        About(request.model, _sides(sets), f"mean and variance at the {request.position} position"),
    )


def _sides(sets: Mapping[str, PromptSet]) -> str:
    """Prompt sets in words, for a listing."""
    return " against ".join(f"{len(found)} of {found.name}" for found in sets.values())


def _selected_by(selection: Selection) -> str:
    """A selection in words, for a listing."""
    given = ", ".join(f"{name} {value}" for name, value in selection.parameters().items())
    return f"{selection.method} ({given})"


def _load_moments(entry: Entry, side: Side) -> list[Moments]:
    arrays = load_file(entry.file("moments.safetensors"))
    count = entry.summary["counts"][side]
    return [
        Moments(count, arrays[f"{side}.{layer}.mean"], arrays[f"{side}.{layer}.m2"])
        for layer in range(entry.summary["model"]["layers"])
    ]


def _select_and_save(
    request: IdentifyRequest,
    selection: Selection,
    captured: Entry,
    sets: dict[str, PromptSet],
    recipe: Mapping[str, object],
    store: Store,
) -> Entry:
    table = score_table(_load_moments(captured, "harmful"), _load_moments(captured, "harmless"))
    model = ModelInfo.model_validate(captured.summary["model"] | {"source": request.model})
    parts = select_parts(table, model.neurons_per_layer, selection)
    neurons = reduce(or_, parts.values())
    if not len(neurons):
        raise SafeNeuronError(
            f"no neuron passes {selection.method} with {selection.parameters()}; lower the "
            "thresholds, or choose a share with --top 0.01"
        )
    parameters = selection.parameters() | {
        "position": request.position,
        "backend": request.backend,
        "dtype": request.dtype,
    }
    mask = MaskFile.of(
        neurons,
        model,
        MethodInfo(name=request.method, parameters=dict(parameters)),
        MaskPrompts(harmful=sets["harmful"].info(), harmless=sets["harmless"].info()),
        parts,
    )

    def write(scratch: Path) -> None:
        write_parquet(table, scratch / "scores.parquet")
        mask.write(scratch / "mask.json")

    return store.save(
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
        },
        write,
        About(request.model, _sides(sets), _selected_by(selection)),
    )


# --- Attack (paper Sec. 4.1) -----------------------------------------------------------


def attack(
    request: AttackRequest, progress: Progress = silent, store: Store | None = None
) -> Attacked:
    """Remove neurons and judge the answers to harmful and harmless prompts.

    Killed and called again, it goes on after the last batch that was judged.

    Raises:
        SafeNeuronError: bad input, before anything is written.
    """
    store = store or Store()
    prompts: dict[Side, PromptSet] = {
        "harmful": read_prompts(request.harmful),
        "harmless": read_prompts(request.harmless),
    }
    if request.over_refusal is not None:
        prompts["over-refusal"] = read_over_refusal(request.over_refusal)
    folder = resolve(request.model)
    mask = mask_of(request, progress, store)
    own = mask.model.model_copy(update={"fingerprint": folder.fingerprint})
    require_fit(mask, own, folder.ancestors, request.force)
    settings = _settings(request, mask, folder)
    finding: dict[Side, PromptSet] = {}
    if set(settings) - set(FROM_MASK):
        finding = finding_prompts(request, prompts["harmful"])
    for name in {"ES", "SAS"} & set(settings):
        mask.part(name.lower())  # says what is missing before any model is run
    used = {field for name in settings for field in PARAMETERS.get(name, ())}
    values = request.model_dump(mode="json")
    recipe = {
        "fingerprint": folder.fingerprint,
        "tokenizer": folder.tokenizer,
        "mask": mask.sha256,
        "parts": mask.parts,
        "settings": list(settings),
        "parameters": {field: values[field] for field in sorted(used)},
        "harmful": prompts["harmful"].sha256,
        "harmless": prompts["harmless"].sha256,
        "found_on": {side: found.sha256 for side, found in finding.items()},
        "max_new_tokens": request.max_new_tokens,
        "dtype": request.dtype,
        "judge": _judge_name(request),
        "harm_judge": request.harm_judge,
        "keep_responses": request.keep_responses,
    }
    if "over-refusal" in prompts:
        recipe["over_refusal"] = prompts["over-refusal"].sha256
    # The batches depend on their size, the result does not beyond rounding.
    sized = recipe | {"batch_size": request.batch_size}
    earlier: Entry | None = None
    if request.costs:
        earlier = store.find("attack", recipe)
        recipe = recipe | {"cost_tokens": request.cost_tokens}
    if entry := store.find("attack", recipe):
        return Attacked(entry, read_attack(entry.file("attack.json")), True)
    with store.unfinished("attack", sized) as unfinished:
        # Another process may have made it while this one waited.
        if entry := store.find("attack", recipe):
            return Attacked(entry, read_attack(entry.file("attack.json")), True)
        # Answers that were judged without their costs are not asked for again.
        answered = read_attack(earlier.file("attack.json")) if earlier else None
        result = _run_attack(
            request, folder, mask, settings, prompts, finding, progress, store, unfinished, answered
        )

        def write(scratch: Path) -> None:
            (scratch / "attack.json").write_text(result.model_dump_json(by_alias=True), "utf-8")

        summary = {
            "model": request.model,
            "fingerprint": folder.fingerprint,
            "mask": mask.sha256,
            "count": mask.count,
            "fraction": mask.fraction,
            "success": _success(result),
        }
        title = f"attack on {request.model}: {', '.join(settings)}"
        about = About(
            request.model,
            " and ".join(f"{len(asked)} of {asked.name}" for asked in prompts.values()),
            f"{', '.join(settings)} with a mask of {mask.count} neurons, {mask.sha256[:8]}",
        )
        entry = store.save("attack", recipe, title, summary, write, about)
    return Attacked(entry, result, False)


def _run_attack(
    request: AttackRequest,
    folder: ModelFolder,
    mask: MaskFile,
    settings: tuple[AttackSetting, ...],
    prompts: dict[Side, PromptSet],
    finding: dict[Side, PromptSet],
    progress: Progress,
    store: Store,
    unfinished: Path,
    answered: AttackResult | None,
) -> AttackResult:
    from analysis.attacks.costs import measure_costs
    from analysis.attacks.judging import Panel
    from analysis.attacks.run import answer_all
    from analysis.attacks.suite import plan_settings
    from toolkit.judge.specs import open_harm_judge

    started = time.monotonic()
    context = attack_context(request, folder, mask, finding, progress)
    planned = plan_settings(context, settings, store)
    panel = Panel(
        context.loaded,
        request.perplexity_limit,
        open_harm_judge(request.harm_judge) if request.harm_judge else None,
    )
    if answered is None:
        answers, spent = (
            answer_all(context, planned, prompts, unfinished, panel, panel.settled),
            0.0,
        )
    else:
        answers, spent = answered.answers, answered.seconds
    costs: list[Cost] = []
    if request.costs:
        folder_of_costs = unfinished / f"costs-{request.cost_tokens}"
        costs = measure_costs(context, planned, prompts["harmless"], folder_of_costs)
    return AttackResult(
        model=context.loaded.info,
        mask=MaskInfo.of(mask),
        settings=[found.setting for found in planned],
        prompts={side: found.info() for side, found in prompts.items()},
        generation=Generation(
            max_new_tokens=request.max_new_tokens,
            dtype=request.dtype,
            batch_size=request.batch_size,
            cost_tokens=request.cost_tokens if request.costs else None,
        ),
        judge=_judge_name(request),
        harm_judge=panel.harm.name if panel.harm is not None else None,
        answers=answers,
        seconds=round(spent + time.monotonic() - started, 1),
        costs=costs,
        found_on={side: found.info() for side, found in finding.items()},
        device=_device(context),
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def _judge_name(request: AttackRequest) -> str:
    limit = request.perplexity_limit
    return JUDGE if limit is None else f"{JUDGE}+perplexity/{limit:g}"


def _device(context: "AttackContext") -> str:
    import torch

    device = context.loaded.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


def attack_context(
    request: AttackRequest,
    folder: ModelFolder,
    mask: MaskFile,
    finding: dict[Side, PromptSet],
    progress: Progress,
) -> "AttackContext":
    """The model under attack, loaded, with what the settings need to know."""
    import torch

    from analysis.attacks.context import AttackContext
    from toolkit.models.load import load_model

    loaded = load_model(folder, dtype=getattr(torch, request.dtype))
    require_fit(mask, loaded.info, folder.ancestors, request.force)
    return AttackContext(loaded, mask, request, finding, progress)


def _success(result: AttackResult) -> dict[str, float]:
    table = attack_table(result)
    harmful = table[(table["side"] == "harmful") & table["seed"].isna()]
    return dict(zip(harmful["setting"], harmful["success"].round(4), strict=True))


def mask_of(request: AttackRequest, progress: Progress, store: Store) -> MaskFile:
    """The mask to attack with; found on the model itself where none is given."""
    if request.mask is not None:
        return read_mask(request.mask)
    wanted = IdentifyRequest(
        model=request.model,
        harmful=request.find_harmful,
        harmless=request.find_harmless,
        top_sas=OWN_SAS,
        top_es=OWN_ES,
    )
    return identify(wanted, progress, store).mask


def _settings(
    request: AttackRequest, mask: MaskFile, folder: ModelFolder
) -> tuple[AttackSetting, ...]:
    """What was asked for, once each; else the paper's, and AGAIN on a model trained since."""
    if request.settings is not None:
        return tuple(dict.fromkeys(request.settings))
    trained = mask.model.fingerprint != folder.fingerprint
    return (*PAPER_SETTINGS, "AGAIN") if trained else PAPER_SETTINGS


def finding_prompts(request: AttackRequest, attacked: PromptSet) -> dict[Side, PromptSet]:
    """Prompts to identify on: none of those that are then answered.

    Raises:
        SafeNeuronError: fewer than two are left on a side.
    """
    found: dict[Side, PromptSet] = {
        "harmful": read_prompts(request.find_harmful).without(attacked),
        "harmless": read_prompts(request.find_harmless),
    }
    for side, prompts in found.items():
        if len(prompts) < 2:
            raise SafeNeuronError(
                f"{prompts.name} leaves {len(prompts)} {side} prompts to identify on, and a "
                f"variance needs at least two; choose others with --find-{side}"
            )
    return found


# --- Red-team generator (paper Sec. 1) ---------------------------------------------------


def red_team(
    request: RedTeamRequest, progress: Progress = silent, store: Store | None = None
) -> tuple[Entry, RedTeamResult, bool]:
    """Have a model write attack prompts, whole and pruned, and try them on a target.

    Returns:
        The stored entry, the result, and whether it was in the store already.

    Raises:
        SafeNeuronError: bad input, before anything is written.
    """
    store = store or Store()
    labelled = read_prompts(request.topics)
    asked = request.attack()
    folder = resolve(request.model)
    target = resolve(request.target) if request.target else folder
    mask = mask_of(asked, progress, store)
    finding = finding_prompts(asked, labelled) if set(request.settings) - set(FROM_MASK) else {}
    own = mask.model.model_copy(update={"fingerprint": folder.fingerprint})
    require_fit(mask, own, folder.ancestors, request.force)

    from analysis.attacks.redteam import red_team as run
    from analysis.attacks.suite import plan_settings
    from toolkit.models.load import load_model

    recipe = {
        **request.model_dump(mode="json", exclude={"model", "mask", "target", "force"}),
        "fingerprint": folder.fingerprint,
        "target": target.fingerprint,
        "mask": mask.sha256,
        "topics": labelled.sha256,
        "found_on": {side: found.sha256 for side, found in finding.items()},
        "judge": JUDGE,
    }
    if entry := store.find("redteam", recipe):
        text = entry.file("redteam.json").read_text("utf-8")
        return entry, RedTeamResult.model_validate_json(text), True
    context = attack_context(asked, folder, mask, finding, progress)
    planned = plan_settings(context, request.settings, store)
    asked_model = context.loaded
    if target.fingerprint != folder.fingerprint:
        asked_model = load_model(target, dtype=context.loaded.model.dtype)
    result = run(
        context, planned, asked_model, labelled, request.draws, request.seed, request.keep_responses
    )

    def write(scratch: Path) -> None:
        (scratch / "redteam.json").write_text(result.model_dump_json(by_alias=True), "utf-8")

    table = red_team_table(result)
    summary = {
        "model": request.model,
        "usable": dict(zip(table["setting"], table["usable"].round(4), strict=True)),
    }
    title = f"attack prompts written by {request.model}: {', '.join(request.settings)}"
    about = About(
        request.model,
        f"categories of {labelled.name}",
        f"{', '.join(request.settings)}, {request.draws} draws each",
    )
    return store.save("redteam", recipe, title, summary, write, about), result, False
