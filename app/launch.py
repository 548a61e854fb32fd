"""A job run from the command line: started here, watched to its end."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.align_requests import AlignRequest, RoundsRequest
from analysis.requests import Request
from app.jobs.devices import take
from app.jobs.events import events, result_of
from app.jobs.folder import ALIVE, Holds, Job, cancel, create, requeue, settle, state_of
from app.jobs.start import spawn
from app.jobs.verbs import Verb
from app.settings import read_settings
from toolkit.errors import SafeNeuronError
from toolkit.files import require_writable
from toolkit.progress import Progress
from toolkit.signals import on_sigterm

POLL = 0.3  # seconds


def _unheard(text: str) -> None:
    """Drop a line that nobody asked for."""


def run_to_end(
    verb: Verb,
    request: Request,
    folder: Path,
    progress: Progress,
    note: Callable[[str], None] = _unheard,
) -> dict[str, Any]:
    """Run a job in ``folder``, or attach to the one that runs there.

    A job that was stopped goes on; one that is done is not run again while its folder holds
    what is asked for. Ctrl-C or SIGTERM cancels it, and comes back when it has saved. ``note``
    hears what the job says in words, and why it waits.

    Returns:
        Its ``result.json``.

    Raises:
        SafeNeuronError: it failed, or was cancelled.
        KeyboardInterrupt: Ctrl-C here.
        SystemExit: SIGTERM here.
    """
    require_writable(folder, "folder")
    holds = HOLDS.get(verb)
    job = create(verb, request, folder, holds)
    if holds is not None and state_of(job).state == "done":
        if holds(request, job.folder):
            note(f"{folder} holds it already: nothing was trained")
        else:
            requeue(job, done=True)
    process = None
    try:
        with on_sigterm(_terminated):
            if state_of(job).state not in {*ALIVE, "done"}:
                requeue(job)
                process = _start(job, note)
            _watch(job, process, progress, note)
    except (KeyboardInterrupt, SystemExit):
        cancel(job)
        _watch(job, process, progress, note)
        raise
    finally:
        if process is not None:
            process.wait()
        settle(job)
    state = state_of(job)
    result = result_of(job)
    if state.state == "done" and result is not None:
        return result
    if state.state == "cancelled":
        raise SafeNeuronError(f"{verb} was cancelled; the same command goes on from {folder}")
    raise SafeNeuronError(
        state.error or f"the job's process ended ({state.state}); see {job.file('log.txt')}"
    )


def _holds_align(request: AlignRequest, folder: Path) -> bool:
    from analysis.alignment import standing

    return standing(request, folder)


def _holds_rounds(request: RoundsRequest, folder: Path) -> bool:
    from analysis.rounds import standing

    return standing(request, folder)


HOLDS: dict[Verb, Holds] = {"align": _holds_align, "rounds": _holds_rounds}


def _terminated() -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _start(job: Job, note: Callable[[str], None]) -> Any:
    """Start a queued job as soon as a device is free; None when a worker was quicker."""
    settings = read_settings()
    told = False
    while state_of(job).state == "queued":
        slot = take(settings, job.verb)
        if slot is not None:
            try:
                return spawn(job, slot)
            finally:
                slot.release()
        if not told:
            note("waiting for another job to leave the device ('safeneuron jobs')")
            told = True
        time.sleep(POLL)
    return None


def _watch(job: Job, process: Any, progress: Progress, note: Callable[[str], None]) -> None:
    """Hand a job's events on until its process has ended."""
    offset = job.file("events.jsonl").stat().st_size if job.file("events.jsonl").exists() else 0
    while True:
        unfinished = state_of(job).state in {"queued", *ALIVE}
        over = process.poll() is not None if process else not unfinished
        found, offset = events(job, offset)
        for event in found:
            if event.get("kind") == "train":
                progress("train", int(event["step"]), int(event["total"]))
            elif event.get("kind") == "stage":
                progress(str(event["stage"]), int(event["done"]), int(event["total"]))
            elif event.get("kind") == "note":
                note(str(event["text"]))
        if over:
            return
        time.sleep(POLL)
