"""What removal does to a model's capability, measured by lm-evaluation-harness.

The harness asks its questions while a setting's neurons are removed, as in an attack. It
is an extra: ``pip install 'safeneuron[capability]'``.
"""

import time
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
from pydantic import Field

from analysis.requests import FROM_MASK, CapabilityRequest
from analysis.robustness import MaskInfo, Setting, Side
from analysis.store import About, Entry, Store
from analysis.study import attack_context, finding_prompts, mask_of
from toolkit.errors import SafeNeuronError
from toolkit.files import sha256_file
from toolkit.masks import MaskFile, ModelInfo, Record, ToolInfo, now, require_fit
from toolkit.models.sources import resolve
from toolkit.progress import Progress, silent
from toolkit.prompt_sets import PromptSet

if TYPE_CHECKING:
    from analysis.attacks.context import Planned
    from toolkit.models.load import LoadedModel


class Score(Record):
    """One metric of one task under one setting."""

    asked: str = Field(description="what was asked for: the task, or a group or tag it is of")
    task: str
    metric: str
    filter: str = Field(description="how the answer was read, 'none' where it needs no reading")
    setting: str
    seed: int | None = None
    value: float | None = Field(description="null where log-likelihoods were not finite")
    low: float | None = Field(description="95 % interval")
    high: float | None
    interval: Literal["wilson", "normal"] | None = Field(
        description="wilson where every question scores 0 or 1, else 1.96 standard errors"
    )
    n: int = Field(ge=0, description="questions")
    broken: int = Field(ge=0, description="questions with a log-likelihood that is not finite")
    higher_is_better: bool | None = None
    shots: int | None = None


class CapabilityResult(Record):
    """The capability file, schema ``safeneuron.capability/1``."""

    schema_: Literal["safeneuron.capability/1"] = Field(
        default="safeneuron.capability/1", alias="schema"
    )
    model: ModelInfo
    mask: MaskInfo | None = Field(description="null where nothing was removed")
    settings: list[Setting]
    tasks: list[str]
    versions: dict[str, str] = Field(description="of the harness and its libraries")
    limit: int | None
    chat_template: bool
    dtype: str
    scores: list[Score]
    seconds: float
    created: datetime = Field(default_factory=now)
    tool: ToolInfo = Field(default_factory=ToolInfo)


@dataclass(frozen=True)
class Measured:
    """What was measured, and whether it was in the store already."""

    entry: Entry
    result: CapabilityResult
    reused: bool


def capability(
    request: CapabilityRequest, progress: Progress = silent, store: Store | None = None
) -> Measured:
    """Put the harness's tasks to a model under every setting.

    Killed and called again, it goes on after the last task that was finished.

    Raises:
        SafeNeuronError: the extra is not installed, no such task, or its data is not at hand.
    """
    store = store or Store()
    harness = _harness_version()
    folder = resolve(request.model)
    settings = tuple(dict.fromkeys(request.settings))
    asked = request.attack()
    mask: MaskFile | None = None
    if request.mask is not None or set(settings) != {"ORI"}:
        mask = mask_of(asked, progress, store)
        own = mask.model.model_copy(
            update={"source": request.model, "fingerprint": folder.fingerprint}
        )
        require_fit(mask, own, folder.ancestors, request.force)
    finding: dict[Side, PromptSet] = {}
    if set(settings) - set(FROM_MASK):
        finding = finding_prompts(asked, PromptSet("none", ()))
    recipe = {
        **request.model_dump(
            mode="json", exclude={"model", "mask", "include_path", "batch_size", "force"}
        ),
        "harness": harness,
        "fingerprint": folder.fingerprint,
        "tokenizer": folder.tokenizer,
        "mask": mask.sha256 if mask else None,
        "parts": mask.parts if mask else None,
        "found_on": {side: found.sha256 for side, found in finding.items()},
        "task_files": _contents(request.include_path),
    }
    if entry := store.find("capability", recipe):
        return Measured(entry, _read(entry), True)

    from analysis.harness import load_tasks, measure

    tasks = load_tasks(request.tasks, request.include_path)
    sized = recipe | {"batch_size": request.batch_size}
    with store.unfinished("capability", sized) as unfinished:
        # Another process may have made it while this one waited.
        if entry := store.find("capability", recipe):
            return Measured(entry, _read(entry), True)
        started = time.monotonic()
        loaded, planned = _planned(request, mask, finding, progress, store)
        scores = measure(loaded, planned, tasks, request, unfinished, progress)
        result = CapabilityResult(
            model=loaded.info,
            mask=MaskInfo.of(mask) if mask else None,
            settings=[found.setting for found in planned],
            tasks=list(request.tasks),
            versions={"lm_eval": harness, **{n: version(n) for n in ("torch", "transformers")}},
            limit=request.limit,
            chat_template=request.chat_template,
            dtype=request.dtype,
            scores=scores,
            seconds=round(time.monotonic() - started, 1),
        )

        def write(scratch: Path) -> None:
            text = result.model_dump_json(by_alias=True)
            (scratch / "capability.json").write_text(text, "utf-8")

        title = f"capability of {request.model}: {', '.join(request.tasks)}"
        summary = {"model": request.model, "tasks": list(request.tasks)}
        about = About(request.model, ", ".join(request.tasks), ", ".join(settings))
        entry = store.save("capability", recipe, title, summary, write, about)
    return Measured(entry, result, False)


def _planned(
    request: CapabilityRequest,
    mask: MaskFile | None,
    finding: dict[Side, PromptSet],
    progress: Progress,
    store: Store,
) -> tuple["LoadedModel", list["Planned"]]:
    """The model, and what each setting does to it; without a mask it stays whole."""
    import torch

    from analysis.attacks.context import Planned
    from analysis.attacks.suite import plan_settings
    from toolkit.models.load import load_model
    from toolkit.rows import Plan

    folder = resolve(request.model)
    if mask is None:
        loaded = load_model(folder, dtype=getattr(torch, request.dtype))
        return loaded, [Planned(Setting(name="ORI", neurons=0), Plan())]
    context = attack_context(request.attack(), folder, mask, finding, progress)
    settings = tuple(dict.fromkeys(request.settings))
    return context.loaded, plan_settings(context, settings, store)


def _read(entry: Entry) -> CapabilityResult:
    return CapabilityResult.model_validate_json(entry.file("capability.json").read_text("utf-8"))


def _harness_version() -> str:
    try:
        return version("lm_eval")
    except PackageNotFoundError as error:
        raise SafeNeuronError(
            "capability needs lm-evaluation-harness: pip install 'safeneuron[capability]'"
        ) from error


def _contents(folder: Path | None) -> dict[str, str]:
    """Every file under a folder of tasks, with its hash: tasks and their data."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise SafeNeuronError(f"--include-path {folder} is not a folder")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def capability_table(result: CapabilityResult) -> pd.DataFrame:
    """One row a score; the columns are the fields of :class:`Score`."""
    return pd.DataFrame(
        [score.model_dump() for score in result.scores], columns=[*Score.model_fields]
    )


def printable_capability(result: CapabilityResult) -> pd.DataFrame:
    """What was asked for, as words; the parts of a group only where it has no score itself."""
    whole = {score.asked for score in result.scores if score.task == score.asked}
    rows = []
    for score in result.scores:
        if score.asked in whole and score.task != score.asked:
            continue
        read = "" if score.filter == "none" else f" ({score.filter})"
        rows.append(
            {
                "task": score.task,
                "metric": score.metric + read,
                "setting": score.setting + ("" if score.seed is None else f" {score.seed}"),
                "score": _words(score),
                "n": str(score.n),
                "shots": "-" if score.shots is None else str(score.shots),
            }
        )
    return pd.DataFrame(rows)


def _words(score: Score) -> str:
    if score.value is None:
        return f"- ({score.broken} not finite)"
    shown = f"{score.value:.3f}"
    if score.low is None or score.high is None:
        return shown
    return f"{shown} [{score.low:.3f}, {score.high:.3f}]"
