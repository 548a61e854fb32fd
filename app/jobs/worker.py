"""The worker: takes jobs from the queue, gives each a device and a process, and looks after it.

huey's consumer brings the threads, one for each job that may run at once. A task cannot be
stopped and would share the worker's memory, so it only starts the job's own process, in a
session of its own, and waits for it. Killed and started again, the worker finds the jobs
that still run by their locks, and in the folders those that the queue has lost.
"""

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from app.jobs.devices import Slot, devices, jobs_at_once, take
from app.jobs.folder import (
    STOPPED,
    Job,
    change_state,
    list_jobs,
    read_job,
    settle,
    signal_process,
    state_of,
)
from app.jobs.process import end_marked, here, marked, started, wait_gone
from app.jobs.queue import QUEUE_ERRORS, enqueue, queue, waiting
from app.jobs.run import ALREADY_RUNNING
from app.jobs.start import spawn
from app.settings import read_settings
from toolkit.errors import SafeNeuronError
from toolkit.files import write_atomically
from toolkit.home import home

GRACE = 100.0  # seconds that a job has for saving when the worker stops
LINGER = 20.0  # seconds that a process has for ending after it said that it has
IDLE = 0.5  # seconds between looks at a process or an empty queue
SWEEP = 3.0  # seconds between looks at all jobs
STALE = 30.0  # seconds after which a worker that gave no sign is taken for gone

TROUBLE: tuple[type[Exception], ...] = (SafeNeuronError, *QUEUE_ERRORS)

_stopping = threading.Event()
_mine: set[str] = set()
_guard = threading.Lock()
log = logging.getLogger("safeneuron.worker")


class Sign(BaseModel):
    """A worker's sign of life, ``workers/<host>.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    host: str
    pid: int
    started: str | None
    time: float
    devices: tuple[str, ...]


@contextmanager
def _in_hand(job: Job) -> Iterator[bool]:
    """Hold a job in this worker; false when another of its threads does."""
    with _guard:
        free = job.id not in _mine
        _mine.add(job.id)
    try:
        yield free
    finally:
        if free:
            _mine.discard(job.id)


def run(name: str) -> None:
    """Run the job of an id to its end, unless it was stopped or is run already.

    A worker that is told to stop has the job save, and leaves it queued for the next.

    Raises:
        SafeNeuronError: there is no such job.
    """
    job = read_job(name)
    with _in_hand(job) as free:
        slot = _wait_for_device(job) if free else None
        if slot is None:
            return
        turn = state_of(job).turn
        try:
            process = spawn(job, slot)
        except SafeNeuronError as error:
            _fail(job, turn, str(error))
            return
        finally:
            slot.release()
        _attend(job, turn, process)


def _wait_for_device(job: Job) -> Slot | None:
    """The devices for a job once they are free; None when it is not to run any more."""
    settings = read_settings()
    while not _stopping.is_set() and state_of(job).state == "queued":
        slot = take(settings, job.verb)
        if slot is not None:
            return slot
        _stopping.wait(IDLE)
    return None


def _attend(job: Job, turn: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait for a job's process, and end what outlives it.

    Once lost it may be put back into the queue before this is over: that is another turn.
    """
    over: float | None = None
    while process.poll() is None:
        if _stopping.wait(IDLE):
            _have_it_save(job, process)
            return
        if state_of(job).state in {"queued", "running", "cancelling"}:
            over = None
        elif over is None:
            over = time.monotonic()
        elif time.monotonic() - over > LINGER:
            end_marked(job.folder)
    state = settle(job)
    if state.turn != turn or process.returncode == ALREADY_RUNNING:
        return
    if state.state != "queued":
        if state.state in {*STOPPED, "done"}:
            end_marked(job.folder)  # what it started and left behind
        return
    end_marked(job.folder)
    if process.returncode == 0:
        _fail(
            job, turn, "the launcher came back before the job began; use one that waits for its end"
        )
    else:
        _fail(job, turn, "the job's process did not start; its log says why")


def _fail(job: Job, turn: int, error: str) -> None:
    """Failed, if the process died before it could say anything of itself."""
    line = {"state": "failed", "error": " ".join(error.split())}
    begun = ("queued", turn)
    change_state(
        job, lambda old: old.model_copy(update=line) if (old.state, old.turn) == begun else None
    )


def _have_it_save(job: Job, process: "subprocess.Popen[bytes]") -> None:
    """Stop a job because the worker stops; it goes on with the next one."""
    state = state_of(job)
    # Not one that a user is cancelling; "queued" while its process is still starting.
    wanted = state.state in {"queued", "running"}
    if state.state == "running" and state.host == here():
        # The process itself: a launcher above it would leave it alone.
        signal_process(state, signal.SIGTERM)
    else:
        process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        log.warning("%s did not save in time and is killed", job.id)
    end_marked(job.folder)
    process.wait()
    wait_gone(job.folder, 5.0)
    if wanted and state_of(job).state in {"queued", "cancelled", "lost"}:
        enqueue(job)


def sweep() -> None:
    """Set right what a kill left: lost jobs are marked, forgotten ones enqueued again."""
    stray = [job for job in list_jobs() if settle(job).state == "queued" and job.id not in _mine]
    if not stray:
        return
    in_queue = waiting()
    for job in reversed(stray):  # the oldest first
        if job.id not in in_queue and not marked(job.folder):
            log.info("%s was in no queue and is put back", job.id)
            enqueue(job)


def _workers() -> Path:
    return home() / "workers"


def _sign() -> None:
    sign = Sign(
        host=here(),
        pid=os.getpid(),
        started=started(os.getpid()),
        time=time.time(),
        devices=devices(read_settings()),
    )
    write_atomically(_workers() / f"{socket.gethostname()}.json", sign.model_dump_json())


def workers() -> list[Sign]:
    """The workers that run jobs of this home now."""
    found = []
    for path in sorted(_workers().glob("*.json")) if _workers().is_dir() else ():
        try:
            sign = Sign.model_validate_json(path.read_text("utf-8"))
        except (OSError, ValidationError):
            continue  # gone meanwhile, or edited
        alive = started(sign.pid) == sign.started if sign.host == here() else None
        if alive or (alive is None and abs(time.time() - sign.time) < STALE):
            found.append(sign)
    return found


def work() -> None:
    """Run queued jobs, one a device, until SIGTERM or SIGINT.

    Raises:
        SafeNeuronError: another worker runs here on this home, or the queue cannot be reached.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    _workers().mkdir(parents=True, exist_ok=True)
    lock = FileLock(_workers() / f"{socket.gethostname()}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SafeNeuronError(
            f"another worker runs jobs under {home()}; stop it first, or serve with --no-worker"
        ) from error
    huey, _ = queue()
    with lock:
        _stopping.clear()
        consumer = huey.create_consumer(
            workers=jobs_at_once(read_settings()), periodic=False, max_delay=IDLE
        )
        consumer.start()
        # The consumer's own handlers would leave jobs behind, or restart it.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: _stopping.set())
        while not _stopping.is_set():
            _look_around()
            consumer.check_worker_health()
            _stopping.wait(SWEEP)
        # Its threads see the same, have their jobs save and come back.
        consumer.stop(graceful=True)
        (_workers() / f"{socket.gethostname()}.json").unlink(missing_ok=True)


def _look_around() -> None:
    try:
        _sign()
        sweep()
    except TROUBLE as error:
        # A full disk or a queue that is away: the jobs that run go on, and it may come back.
        log.warning("%s", " ".join(str(error).split()))
