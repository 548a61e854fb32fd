"""The attack on a model before and after it was aligned, with one and the same mask."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.requests import PAPER_SETTINGS, AlignRequest, AttackRequest, AttackSetting
from analysis.robustness import AttackResult, read_attack
from toolkit.files import write_atomically
from toolkit.progress import Progress

OnEvent = Callable[[dict[str, Any]], None]
BEFORE, AFTER, ATTACK_MASK = "attack-before.json", "attack-after.json", "attack-mask.json"


class StopAskedError(Exception):
    """Raised out of a progress call when the run is to stop; what is done is kept."""


def watched(on_event: OnEvent, should_stop: Callable[[], bool]) -> Progress:
    """A progress that tells events and stops the work when asked."""

    def progress(stage: str, done: int, total: int) -> None:
        on_event({"kind": "stage", "stage": stage, "done": done, "total": total})
        if should_stop():
            raise StopAskedError

    return progress


def attack_into(
    path: Path, request: AlignRequest, model: str, mask: Path, trained: bool, progress: Progress
) -> AttackResult:
    """Attack a model as the request says, or read the attack that is there.

    Args:
        path: of the attack file.
        request: its fields ``attacked`` and what follows.
        model: the model under attack.
        mask: the neurons found before training.
        trained: since the mask was made; then it is looked for again besides.
        progress: hears of the work.
    """
    if path.is_file():
        return read_attack(path)
    from analysis.study import attack

    usual: tuple[AttackSetting, ...] = (*PAPER_SETTINGS, "AGAIN") if trained else PAPER_SETTINGS
    asked = AttackRequest(
        model=model,
        mask=mask,
        settings=request.attack_settings or usual,
        harmful=request.attacked,
        harmless=request.attacked_harmless,
        find_harmful=request.find_harmful,
        find_harmless=request.find_harmless,
        max_new_tokens=request.attack_tokens,
        dtype=request.dtype,
        force=request.force,
    )
    result = attack(asked, progress).result
    write_atomically(path, result.model_dump_json(by_alias=True, indent=1) + "\n")
    return result


def attack_both(
    request: AlignRequest, folder: Path, progress: Progress
) -> tuple[AttackResult, AttackResult]:
    """Attack the parent and the model in ``folder``; files there are kept."""
    mask = request.mask
    if mask is None:
        mask = folder / ATTACK_MASK
        if not mask.is_file():
            from analysis.store import Store
            from analysis.study import mask_of

            own = AttackRequest(
                model=request.model,
                find_harmful=request.find_harmful,
                find_harmless=request.find_harmless,
            )
            mask_of(own, progress, Store()).write(mask)
    before = attack_into(folder / BEFORE, request, request.model, mask, False, progress)
    after = attack_into(folder / AFTER, request, str(folder), mask, True, progress)
    return before, after
