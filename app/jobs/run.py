"""The process of one job: ``python -m app.jobs.run FOLDER [HOME]``.

It may be killed at any moment and started again: what was finished is in the store or
in the job's folder, and ``state.json`` says how it stands. Where a launcher starts several
such processes, the first one speaks for all and the others only work.
"""

import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from analysis.align_requests import AlignRequest, RoundsRequest
from analysis.neuron import NeuronRequest
from analysis.requests import AttackRequest, IdentifyRequest, parse_request
from app.jobs.events import append_event
from app.jobs.folder import ALIVE, Job, Phase, State, change_state, read_folder, state_of
from app.jobs.process import MARK, end_marked, here, started
from toolkit.errors import SafeNeuronError
from toolkit.files import write_atomically

HEARTBEAT = 2.0  # seconds
HANDOVER = 30.0  # seconds that an earlier process of a stopped job has for ending
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
RESERVE = 64 << 10  # bytes kept to give free when the disk is full, for the last words
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
        running = State(
            state="running",
            host=here(),
            pid=os.getpid(),
            started=started(os.getpid()),
            heartbeat=time.time(),
        )
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        signal.signal(signal.SIGINT, lambda *_: self._stop.set())
        self.job.file(".reserve").write_bytes(bytes(RESERVE))
        # Cancelled between being picked up and here: then there is nothing to begin.
        state = change_state(
            self.job,
            lambda old: (
                None if old.state == "cancelled" else running.model_copy(update={"turn": old.turn})
            ),
        )
        if state.state == "cancelled":
            raise Cancelled
        self.event({"kind": "start"})
        threading.Thread(target=self._beat, args=(state,), daemon=True).start()

    def _beat(self, me: State) -> None:
        beats = 0
        while not self._over.wait(HEARTBEAT):
            beats += 1
            sign = {"heartbeat": time.time(), "beats": beats}

            def alive(old: State, sign: dict[str, Any] = sign) -> State | None:
                if old.state in {"lost", "queued"}:
                    # Taken for lost where a clock was wrong: it is not.
                    return me.model_copy(update={**sign, "turn": old.turn})
                return old.model_copy(update=sign) if old.state in ALIVE else None

            try:
                state = change_state(self.job, alive)
            except (OSError, SafeNeuronError):
                continue  # a full disk now may have room at the next beat
            # A worker on another machine cannot signal us: we read its orders here.
            if state.state in {"cancelling", "cancelled"}:
                self._stop.set()
            if state.kill:
                end_marked(self.job.folder)
                os._exit(128 + signal.SIGKILL)

    def end(self, phase: Phase, error: str | None = None) -> None:
        """Write the last state."""
        self._over.set()
        self.job.file(".reserve").unlink(missing_ok=True)
        change = {"state": phase, "error": error}
        change_state(self.job, lambda old: old.model_copy(update=change))
        self.event({"kind": "end", "state": phase})


class Helping(Running):
    """One of several processes of a job, not the first: it works and says nothing."""

    def event(self, event: dict[str, Any]) -> None:
        """Leave it to the first process."""

    def begin(self) -> None:
        """Wait for the first process's word to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())

    def end(self, phase: Phase, error: str | None = None) -> None:
        """Leave the last state to the first process."""


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
    if job.verb == "chat":
        from app.jobs.chat import keep_answering

        return keep_answering(running)
    if job.verb == "rounds":
        from analysis.rounds import rounds

        asked = parse_request(RoundsRequest, job.request)
        made = rounds(asked, job.folder, running.event, running.should_stop)
        if not made.finished:
            return None
        return {"rounds": len(made.rounds), "model": made.rounds[-1].model}
    if job.verb == "neuron":
        from analysis.neuron import neuron_page

        page = neuron_page(parse_request(NeuronRequest, job.request), running.progress)
        return {"layer": page.layer, "neuron": page.neuron, "reused": page.reused}
    from analysis.alignment import align

    request = parse_request(AlignRequest, job.request)
    outcome = align(request, job.folder, running.event, running.should_stop)
    if not outcome.finished:
        return None
    mask = str(outcome.mask) if outcome.mask else None
    return outcome.summary | {"model": str(outcome.model), "mask": mask}


def run(job: Job) -> Phase:
    """Run a job to its end in this process, and say how it ended."""
    first = os.environ.get("RANK", "0") == "0"
    running = Running(job) if first else Helping(job)
    try:
        running.begin()
        result = work(running)
        if result is None:
            running.end("cancelled")
            return "cancelled"
        if first:
            text = json.dumps(result, indent=1, default=str) + "\n"
            write_atomically(job.file("result.json"), text)
        running.end("done")
        return "done"
    except Cancelled:
        running.end("cancelled")
        return "cancelled"
    except SafeNeuronError as error:
        said = FULL if _is_full(error) else " ".join(str(error).split())
        running.end("failed", said)
        return "failed"
    except BaseException as error:
        if _is_full(error):
            # By now the work's own files are closed, and those half written deleted.
            running.end("failed", FULL)
            return "failed"
        traceback.print_exc()
        running.end("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise


_held: list[Any] = []  # locks that last as long as this process
FULL = "the disk is full; free some space, then go on: what was saved is kept"


def _is_full(error: BaseException | None) -> bool:
    """Whether an error comes of a full disk, or of one that was being handled then."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        # Libraries in Rust and C++ have words for it only.
        if full or "No space left on device" in str(error) or "os error 28" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    """Run the job of the folder named on the command line; exit code 0 when it is done."""
    folder = Path(sys.argv[1]).absolute()
    if len(sys.argv) > 2:
        # Not every launcher hands the environment on.
        os.environ["SAFENEURON_HOME"] = sys.argv[2]
    os.environ[MARK] = str(folder.resolve())
    try:
        job = read_folder(folder)
    except SafeNeuronError as error:
        sys.stderr.write(f"safeneuron: {' '.join(str(error).split())}\n")
        sys.exit(2)
    if os.environ.get("RANK", "0") == "0":
        _alone(job)
    if state_of(job).state == "done":
        sys.exit(0)
    log = os.open(job.file("log.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from toolkit.memory import keep_freed_memory

    keep_freed_memory()
    codes: dict[Phase, int] = {"done": 0, "cancelled": 4}
    sys.exit(codes.get(run(job), 2))


def _alone(job: Job) -> None:
    """Hold the job, or leave it to the process that does."""
    lock = FileLock(job.file(".run.lock"))
    end = time.monotonic() + HANDOVER
    while True:
        try:
            lock.acquire(timeout=0.5)
            _held.append(lock)
            return
        except Timeout:
            # One that has said its last word is about to end.
            if state_of(job).state in ALIVE or time.monotonic() > end:
                sys.stderr.write(f"safeneuron: {job.id} is running already\n")
                sys.exit(ALREADY_RUNNING)


if __name__ == "__main__":
    main()
