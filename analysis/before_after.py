"""The attack on a model before and after it was aligned, with one and the same mask."""

from collections.abc import Callable
from pathlib import Path

from analysis.align_requests import AlignRequest
from analysis.requests import PAPER_SETTINGS, AttackRequest, AttackSetting
from analysis.robustness import AttackResult, read_attack
from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_text, write_atomically
from toolkit.masks import MaskFile, read_mask
from toolkit.progress import OnEvent, Progress
from toolkit.prompts import read_prompts

BEFORE, AFTER, ATTACK_MASK = "attack-before.json", "attack-after.json", "attack-mask.json"


# What the attack alone reads: it may be asked for later, and of what is trained already.
ATTACK_FIELDS = ("attack", "attacked", "attacked_harmless", "attack_settings", "attack_tokens")


def attack_mask(request: AlignRequest) -> MaskFile | None:
    """Read what the attack will need, before hours of training; its mask if it was given one.

    Raises:
        SafeNeuronError: prompts or a mask that can't be read.
    """
    if not request.attack:
        return None
    for name in (
        request.attacked,
        request.attacked_harmless,
        request.find_harmful,
        request.find_harmless,
    ):
        read_prompts(name)
    return None if request.mask is None else read_mask(request.mask)


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

    Raises:
        SafeNeuronError: the attack that is there was asked for otherwise.
    """
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
    key = sha256_text(canonical_json(asked.model_dump(mode="json", exclude={"model", "mask"})))
    if path.is_file():
        found = read_attack(path)
        if found.request_key not in (None, key):
            raise SafeNeuronError(
                f"{path} is of other prompts or settings; move it away to attack again"
            )
        return found
    from analysis.study import attack

    result = attack(asked, progress).result.model_copy(update={"request_key": key})
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
