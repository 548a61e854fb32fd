"""What a kill, a full disk, two tabs or a wrong clock leave behind: right states, no orphans."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from app.jobs import queue, worker
from app.jobs.events import events, result_of
from app.jobs.folder import Job, Phase, cancel, change_state, create, settle, state_of
from app.jobs.process import MARK, marked
from tests.app.conftest import Process
from tests.app.test_jobs import fake, lives, wait_for
from tests.served import free_port

# A job whose work counts in a file that it saves, and goes on from there; its requests' model
# names what happens to it.
WORK = """
import os, resource, subprocess, sys, time
import app.jobs.run as run
from toolkit.files import write_atomically

def work(running):
    asked, kept = running.job.request, running.job.file("kept.txt")
    model, total = asked["model"], asked["batch_size"]
    begin = int(kept.read_text()) if kept.exists() else 0
    if model == "parent":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if model == "full" and not begin:
        write_atomically(kept, "2")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, resource.RLIM_INFINITY))
        running.job.file("large.bin").write_bytes(bytes(1 << 20))
    if model == "yesterday":
        now = time.time
        time.time = lambda: now() - 86_400
    for done in range(begin, total + 1):
        if running.should_stop():
            for part in range(10 if model == "slow" else 1):
                time.sleep(0.1)  # a checkpoint takes its time
                write_atomically(kept, str(done))
            return None
        write_atomically(kept, str(done))
        running.event({"kind": "stage", "stage": "count", "done": done, "total": total})
        time.sleep(0.05)
    return {"counted": total, "began": begin}

run.work = work
run.main()
"""
WORKER = """
import os, subprocess, sys
from app.jobs import worker
from app.jobs.process import MARK
from tests.app.test_job_faults import WORK

def spawn(job, slot):
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(job.folder)],
        start_new_session=True,
        env=os.environ | {MARK: str(job.folder.resolve())},
        pass_fds=slot.files,
    )

worker.spawn = spawn
worker.SWEEP = 0.3
worker.work()
"""


def start_worker(processes: list[Process]) -> Process:
    process = subprocess.Popen([sys.executable, "-c", WORKER], start_new_session=True)
    processes.append(process)
    return process


def kill(process: Process) -> None:
    process.kill()
    process.wait()


def starts(job: Job) -> int:
    return sum(event["kind"] == "start" for event in events(job)[0])


def kept_of(job: Job) -> int:
    return int(job.file("kept.txt").read_text("utf-8") or 0)


def counted(job: Job) -> bool:
    return bool([event for event in events(job)[0] if event["kind"] == "stage"])


def test_a_worker_killed_before_a_job_began(processes: list[Process]) -> None:
    """Its place in the queue may be gone with it: the next worker finds it in its folder."""
    job = queue.launch("identify", fake())
    assert queue.queue()[0].dequeue() is not None
    assert state_of(job).state == "queued"
    assert not queue.waiting()
    start_worker(processes)
    wait_for(lambda: state_of(job).state == "done")
    assert starts(job) == 1


def test_a_worker_killed_while_a_job_runs(processes: list[Process]) -> None:
    """The job goes on, and the next worker neither starts it again nor loses it."""
    job = queue.launch("identify", fake(count=120))
    first = start_worker(processes)
    wait_for(lambda: counted(job))
    kill(first)
    assert state_of(job).state == "running"
    waits = queue.launch("identify", fake(count=3))
    start_worker(processes)
    time.sleep(1.5)
    # The device is still the first job's: its process holds the lock.
    assert (state_of(job).state, state_of(waits).state) == ("running", "queued")
    wait_for(lambda: state_of(waits).state == "done")
    assert state_of(job).state == "done"
    assert (starts(job), starts(waits)) == (1, 1)


def test_a_worker_killed_while_a_job_is_cancelled(processes: list[Process]) -> None:
    job = queue.launch("identify", fake("slow", 2000))
    first = start_worker(processes)
    wait_for(lambda: counted(job))
    assert cancel(job).state == "cancelling"
    kill(first)
    wait_for(lambda: state_of(job).state == "cancelled")
    assert kept_of(job) > 0
    wait_for(lambda: not marked(job.folder))


@pytest.mark.parametrize("model", ["good", "parent"])
def test_a_job_killed_is_lost_and_goes_on(processes: list[Process], model: str) -> None:
    """Nothing that it started lives on, and what it saved is not done again."""
    job = queue.launch("identify", fake(model, 60))
    start_worker(processes)
    wait_for(lambda: job.file("kept.txt").exists() and kept_of(job) > 0)
    pid = state_of(job).pid
    assert pid is not None
    children = psutil.Process(pid).children(recursive=True)
    assert len(children) == (model == "parent")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state_of(job).state == "lost" and not marked(job.folder))
    assert not [child for child in children if lives(child)]
    kept = kept_of(job)
    queue.enqueue(job)
    wait_for(lambda: state_of(job).state == "done")
    result = result_of(job)
    assert result is not None
    assert result["began"] >= kept > 0
    wait_for(lambda: not marked(job.folder))


def test_a_job_killed_without_a_worker_is_lost() -> None:
    """Whoever looks next, page or command line, sets it right."""
    job = create("identify", fake("parent", 2000))
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(job.folder)],
        env=os.environ | {MARK: str(job.folder.resolve())},
    )
    wait_for(lambda: counted(job))
    assert len(marked(job.folder)) == 2
    kill(process)
    assert state_of(job).state == "lost"
    settle(job)
    wait_for(lambda: not marked(job.folder))


def test_a_full_disk_ends_a_job_and_keeps_what_was_saved(processes: list[Process]) -> None:
    job = queue.launch("identify", fake("full", 4))
    start_worker(processes)
    wait_for(lambda: state_of(job).state == "failed")
    assert "disk is full" in (state_of(job).error or "")
    queue.enqueue(job)  # there is room again
    wait_for(lambda: state_of(job).state == "done")
    assert result_of(job) == {"counted": 4, "began": 2}


def test_two_tabs_press_the_same_button(processes: list[Process]) -> None:
    made: list[Job] = []
    together = threading.Barrier(4)

    def press() -> None:
        together.wait()
        made.append(queue.launch("identify", fake(count=10)))

    tabs = [threading.Thread(target=press) for _ in range(4)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert len({job.id for job in made}) == 1
    start_worker(processes)
    wait_for(lambda: state_of(made[0]).state == "done" and not queue.waiting())
    time.sleep(1.0)
    assert starts(made[0]) == 1


def test_a_cancel_during_a_checkpoint_leaves_it_whole(processes: list[Process]) -> None:
    """Asked twice, the job is killed while it saves; the file is the old one or the new."""
    job = queue.launch("identify", fake("slow", 40))
    start_worker(processes)
    wait_for(lambda: counted(job))
    assert cancel(job).state == "cancelling"
    time.sleep(0.3)
    assert cancel(job).state in {"cancelling", "cancelled"}
    wait_for(lambda: state_of(job).state == "cancelled" and not marked(job.folder))
    kept = kept_of(job)
    queue.enqueue(job)
    wait_for(lambda: state_of(job).state == "done")
    result = result_of(job)
    assert result is not None
    assert result["began"] == kept


def test_a_clock_set_back_while_a_job_runs(processes: list[Process]) -> None:
    job = queue.launch("identify", fake("yesterday", 60))
    start_worker(processes)
    wait_for(lambda: counted(job))
    assert state_of(job).state == "running"
    wait_for(lambda: state_of(job).state == "done")
    assert starts(job) == 1
    clocks = [event["clock"] for event in events(job)[0]]
    assert clocks == sorted(clocks)


def test_a_worker_told_to_stop_leaves_its_job_for_the_next(processes: list[Process]) -> None:
    job = queue.launch("identify", fake(count=60))
    first = start_worker(processes)
    wait_for(lambda: counted(job))
    first.terminate()
    assert first.wait(60) == 0
    assert state_of(job).state == "queued"
    assert queue.waiting() == {job.id}
    start_worker(processes)
    wait_for(lambda: state_of(job).state == "done")
    assert starts(job) == 2


@pytest.mark.parametrize("phase", ["failed", "cancelled", "lost", "done"])
def test_a_worker_killed_leaves_what_is_over_as_it_is(
    processes: list[Process], phase: Phase
) -> None:
    """The next one neither starts it again nor changes what is said of it."""
    job = create("identify", fake())
    change_state(job, lambda old: old.model_copy(update={"state": phase, "error": "why"}))
    kill(start_worker(processes))
    waits = queue.launch("identify", fake(count=3))
    start_worker(processes)
    wait_for(lambda: state_of(waits).state == "done")
    assert (state_of(job).state, state_of(job).error) == (phase, "why")
    assert starts(job) == 0


def test_the_app_killed_while_a_job_runs_and_started_again() -> None:
    """The worker goes with it and has the job save; the next one goes on from there."""
    job = queue.launch("identify", fake(count=100))
    first = start_serving()
    wait_for(lambda: counted(job))
    children = psutil.Process(first.pid).children(recursive=True)
    kill(first)
    psutil.wait_procs(children, timeout=120)
    assert not [child for child in children if child.is_running()]
    assert state_of(job).state == "queued"
    assert not marked(job.folder)
    kept = int(job.file("kept.txt").read_text("utf-8"))
    second = start_serving()
    try:
        wait_for(lambda: state_of(job).state == "done", 120)
    finally:
        second.terminate()
        second.wait(120)
    result = result_of(job)
    assert result is not None
    assert result["began"] >= kept > 0
    assert starts(job) == 2


def start_serving() -> Process:
    """The dashboard with a worker whose jobs count."""
    code = f"import app.serve as s; s.WORKER = {WORKER!r}; s.serve({free_port()}, '127.0.0.1')"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def test_one_worker_a_home(processes: list[Process]) -> None:
    start_worker(processes)
    wait_for(lambda: bool(worker.workers()))
    command = [sys.executable, "-c", "from app.cli import main; main()", "worker"]
    second = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert second.returncode == 2
    assert "another worker runs jobs" in second.stderr


def test_the_queue_runs_no_code_of_who_can_write_to_it(tmp_path: Path) -> None:
    """Tasks are JSON: a pickle in the queue is refused, not loaded."""
    import pickle
    from dataclasses import dataclass

    from huey.exceptions import HueyException

    proof = tmp_path / "proof"

    @dataclass
    class Bomb:
        path: str

        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return os.mkdir, (self.path,)

    huey, _ = queue.queue()
    huey.storage.enqueue(pickle.dumps(Bomb(str(proof))), 0)
    with pytest.raises((HueyException, ValueError)):
        huey.execute(huey.dequeue())
    assert not proof.exists()
