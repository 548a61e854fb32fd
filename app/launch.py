"""A job run from the command line: started here, watched to its end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.requests import Request
from app.jobs.folder import (
    ALIVE,
    Job,
    Verb,
    cancel,
    create,
    events,
    requeue,
    result_of,
    state_of,
)
from app.jobs.queue import spawn
from toolkit.errors import SafeNeuronError
from toolkit.files import require_writable
from toolkit.progress import Progress

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

    A job that was stopped goes on; one that is done is not run again. Ctrl-C cancels
    it, and comes back when it has saved. ``note`` hears what the job says in words.

    Returns:
        Its ``result.json``.

    Raises:
        SafeNeuronError: it failed, or was cancelled.
        KeyboardInterrupt: Ctrl-C here.
    """
    require_writable(folder)
    job = create(verb, request, folder)
    process = None
    if state_of(job).state not in {*ALIVE, "done"}:
        requeue(job)
        process = spawn(job)
    try:
        _watch(job, process, progress, note)
    except KeyboardInterrupt:
        cancel(job)
        _watch(job, process, progress, note)
        raise
    finally:
        if process is not None:
            process.wait()
    state = state_of(job)
    result = result_of(job)
    if state.state == "done" and result is not None:
        return result
    if state.state == "cancelled":
        raise SafeNeuronError(f"{verb} was cancelled; the same command goes on from {folder}")
    raise SafeNeuronError(
        state.error or f"the job's process ended ({state.state}); see {job.file('log.txt')}"
    )


def _watch(job: Job, process: Any, progress: Progress, note: Callable[[str], None]) -> None:
    """Hand a job's events on until its process has ended."""
    offset = job.file("events.jsonl").stat().st_size if job.file("events.jsonl").exists() else 0
    while True:
        over = process.poll() is not None if process else state_of(job).state not in ALIVE
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
