"""The process of one job: ``python -m app.jobs.run FOLDER``.

It may be killed at any moment and started again: what was finished is in the store or
in the job's folder, and ``state.json`` says how it stands.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from analysis.requests import (
    AlignRequest,
    AttackRequest,
    IdentifyRequest,
    RoundsRequest,
    parse_request,
)
from app.jobs.folder import Job, Phase, State, append_event, change_state, read_folder, state_of
from toolkit.errors import SafeNeuronError
from toolkit.files import write_atomically

HEARTBEAT = 2.0  # seconds
ALREADY_RUNNING = 3  # exit code of a second process on a live folder


class Cancelled(BaseException):
    """Raised out of a progress call when the job is to stop; no error of the work's."""


class Running:
    """A job while its process lives: its stop flag, its heartbeat and its events.

    Args:
        job: which.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stop = threading.Event()
        self._over = threading.Event()
        self._last: dict[str, float] = {}

    def should_stop(self) -> bool:
        """Whether somebody asked the job to stop."""
        return self._stop.is_set()

    def event(self, event: dict[str, Any]) -> None:
        """Record an event."""
        append_event(self.job, event)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Record how far a stage is, at most twice a second.

        Raises:
            Cancelled: somebody asked the job to stop.
        """
        now = time.monotonic()
        if done in (0, total) or now - self._last.get(stage, 0.0) > 0.5:
            self._last[stage] = now
            self.event({"kind": "stage", "stage": stage, "done": done, "total": total})
        if self.should_stop():
            raise Cancelled

    def begin(self) -> None:
        """Become the job's process: state, signal handler, heartbeat."""
        me = psutil.Process()
        running = State(
            state="running",
            host=socket.gethostname(),
            pid=me.pid,
            process_started=me.create_time(),
            heartbeat=time.time(),
        )
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        signal.signal(signal.SIGINT, lambda *_: self._stop.set())
        # Cancelled between being picked up and here: then there is nothing to begin.
        state = change_state(self.job, lambda old: None if old.state == "cancelled" else running)
        if state.state == "cancelled":
            raise Cancelled
        self.event({"kind": "start"})
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            state = change_state(
                self.job, lambda old: old.model_copy(update={"heartbeat": time.time()})
            )
            # A worker on another machine cannot be signalled: it reads its orders here.
            if state.state == "cancelling":
                self._stop.set()

    def end(self, phase: Phase, error: str | None = None) -> None:
        """Write the last state."""
        self._over.set()
        change = {"state": phase, "error": error}
        change_state(self.job, lambda old: old.model_copy(update=change))
        self.event({"kind": "end", "state": phase})


def work(running: Running) -> dict[str, Any] | None:
    """Do what the job asks; its result, or None when it stopped before the end.

    Raises:
        SafeNeuronError: bad input.
        Cancelled: it was stopped.
    """
    job = running.job
    if job.verb == "identify":
        from analysis.study import identify

        found = identify(parse_request(IdentifyRequest, job.request), running.progress)
        entry = found.entry
        return {"entry": entry.key, "mask": str(entry.file("mask.json")), "reused": found.reused}
    if job.verb == "attack":
        from analysis.study import attack

        done = attack(parse_request(AttackRequest, job.request), running.progress)
        entry = done.entry
        return {"entry": entry.key, "attack": str(entry.file("attack.json")), "reused": done.reused}
    if job.verb == "rounds":
        from analysis.rounds import rounds

        asked = parse_request(RoundsRequest, job.request)
        made = rounds(asked, job.folder, running.event, running.should_stop)
        if not made.finished:
            return None
        return {"rounds": len(made.rounds), "model": made.rounds[-1].model}
    from analysis.alignment import align

    request = parse_request(AlignRequest, job.request)
    outcome = align(request, job.folder, running.event, running.should_stop)
    if not outcome.finished:
        return None
    mask = str(outcome.mask) if outcome.mask else None
    return outcome.summary | {"model": str(outcome.model), "mask": mask}


def run(job: Job) -> Phase:
    """Run a job to its end in this process, and say how it ended."""
    running = Running(job)
    try:
        running.begin()
        result = work(running)
        if result is None:
            running.end("cancelled")
            return "cancelled"
        write_atomically(job.file("result.json"), json.dumps(result, indent=1, default=str) + "\n")
        running.end("done")
        return "done"
    except Cancelled:
        running.end("cancelled")
        return "cancelled"
    except SafeNeuronError as error:
        running.end("failed", " ".join(str(error).split()))
        return "failed"
    except BaseException as error:
        traceback.print_exc()
        running.end("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise


def main() -> None:
    """Run the job of the folder named on the command line; exit code 0 when it is done."""
    job = read_folder(Path(sys.argv[1]).absolute())
    lock = FileLock(job.file(".run.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.stderr.write(f"safeneuron: {job.id} is running already\n")
        sys.exit(ALREADY_RUNNING)
    if state_of(job).state == "done":
        sys.exit(0)
    # Our own group, so that a cancel reaches every process of the job and no other.
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    log = os.open(job.file("log.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from toolkit.memory import keep_freed_memory

    keep_freed_memory()
    codes: dict[Phase, int] = {"done": 0, "cancelled": 4}
    sys.exit(codes.get(run(job), 2))


if __name__ == "__main__":
    main()
