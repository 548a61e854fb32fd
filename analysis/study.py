"""The paper's method, read from top to bottom: identify the neurons, attack by removing them.

Each step takes a validated request and gives back a stored result. A result that is in
the store already is returned without loading a model. To identify has a file of its own.
"""

import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.costs import Cost
from analysis.identify import Identified, identify
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
from analysis.store import About, Entry, Store
from toolkit.errors import SafeNeuronError
from toolkit.judge.refusal import VERSION as JUDGE
from toolkit.masks import MaskFile, read_mask, require_fit
from toolkit.models.sources import ModelFolder, resolve
from toolkit.over_refusal import read_over_refusal
from toolkit.progress import Progress, silent
from toolkit.prompt_sets import PromptSet
from toolkit.prompts import read_prompts

if TYPE_CHECKING:
    from analysis.attacks.context import AttackContext

__all__ = ["Attacked", "Identified", "attack", "identify", "red_team"]


@dataclass(frozen=True)
class Attacked:
    """What ``attack`` counted, and whether it was in the store already."""

    entry: Entry
    result: AttackResult
    reused: bool


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
    own = mask.model.model_copy(update={"source": request.model, "fingerprint": folder.fingerprint})
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
    left_out: dict[str, str] = {}
    planned = plan_settings(context, settings, store, left_out)
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
        left_out=left_out,
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
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


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
        leave_out=request.harmful,
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
    own = mask.model.model_copy(update={"source": request.model, "fingerprint": folder.fingerprint})
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
