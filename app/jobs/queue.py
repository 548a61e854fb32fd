"""The queue: jobs wait in a SQLite file, and a worker runs one at a time.

A huey task cannot be stopped and would share the worker's memory, so a task only
starts the job's own process, in a group of its own, and waits for it.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from huey import SqliteHuey

from analysis.requests import Request
from app.jobs.folder import (
    ALIVE,
    Job,
    State,
    Verb,
    change_state,
    create,
    list_jobs,
    read_folder,
    requeue,
    state_of,
)
from app.jobs.run import ALREADY_RUNNING
from toolkit.errors import SafeNeuronError
from toolkit.home import home

GRACE = 100.0  # seconds that a job has for saving when the worker stops
IDLE = 0.5  # seconds between looks at an empty queue

_stopping = threading.Event()


@lru_cache(maxsize=4)
def _queue(path: Path) -> tuple[Any, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    huey = SqliteHuey("safeneuron", filename=str(path), results=False)
    return huey, huey.task(name="run_folder")(run_folder)


def queue() -> Any:
    """The queue under ``SAFENEURON_HOME``, made when it is missing."""
    return _queue(home() / "queue.db")[0]


def enqueue(job: Job) -> None:
    """Let the next free worker run a job; one that was stopped goes on."""
    requeue(job)
    _queue(home() / "queue.db")[1](str(job.folder))


def launch(verb: Verb, request: Request) -> Job:
    """Create a job and enqueue it, unless it waits or runs already."""
    job = create(verb, request)
    if state_of(job).state not in ALIVE:
        enqueue(job)
    return job


def spawn(job: Job) -> "subprocess.Popen[bytes]":
    """Start a job's process in a session of its own."""
    command = [sys.executable, "-m", "app.jobs.run", str(job.folder)]
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)


def run_folder(folder: str) -> None:
    """The task: start the job's process and wait for it.

    A worker that is told to stop has the job save, and leaves it queued for the next.
    """
    job = read_folder(Path(folder))
    if state_of(job).state != "queued":
        return  # cancelled meanwhile, or enqueued twice
    process = spawn(job)
    while process.poll() is None:
        if not _stopping.wait(IDLE):
            continue
        # Not one that a user is cancelling; "queued" while its process is still starting.
        wanted = state_of(job).state in {"queued", "running"}
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if wanted and state_of(job).state in {"queued", "cancelled", "lost"}:
            enqueue(job)
        return
    if process.returncode not in {0, ALREADY_RUNNING}:
        change_state(job, _never_began)


def _never_began(old: State) -> State | None:
    """Failed, if the process died before it could say anything of itself."""
    if old.state != "queued":
        return None
    return old.model_copy(
        update={"state": "failed", "error": "the job's process did not start; see the worker's log"}
    )


def work() -> None:
    """Run queued jobs, one at a time, until SIGTERM or SIGINT.

    Raises:
        SafeNeuronError: another worker runs on this home.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    _stopping.clear()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stopping.set())
    huey = queue()
    lock = FileLock(home() / "worker.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SafeNeuronError(
            f"another worker runs jobs under {home()}; stop it first, or serve with --no-worker"
        ) from error
    with lock:
        while not _stopping.is_set():
            # A job started from the command line is waited for: two at once starve both.
            busy = any(state_of(job).state in ALIVE for job in list_jobs())
            task = None if busy else huey.dequeue()
            if task is None:
                _stopping.wait(IDLE)
            else:
                huey.execute(task)
