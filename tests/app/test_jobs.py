"""Jobs as real processes: their states, their events, and what a kill leaves behind."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from analysis.align_requests import AlignRequest
from analysis.requests import AttackRequest, IdentifyRequest
from analysis.robustness import read_attack
from app.jobs import folder as jobs
from app.jobs import queue, worker
from app.jobs.devices import take
from app.jobs.events import append_event, events, result_of
from app.jobs.folder import (
    Job,
    State,
    cancel,
    create,
    list_jobs,
    read_folder,
    read_job,
    state_of,
)
from app.jobs.process import here
from app.jobs.start import spawn as spawn_real
from app.launch import HOLDS, run_to_end
from app.serve import serve
from app.settings import Settings
from tests.served import free_port
from tests.tiny import HARMFUL, HARMLESS
from toolkit.errors import SafeNeuronError
from toolkit.masks import read_mask
from toolkit.progress import silent

REQUEST = IdentifyRequest(model="a-model")
# The job process with the work replaced: it counts to the request's batch size, slowly.
FAKE = """
import sys, time
import app.jobs.run as run
from toolkit.errors import SafeNeuronError

def work(running):
    total = running.job.request["batch_size"]
    if running.job.request["model"] == "bad":
        raise SafeNeuronError("no model\\n 'bad'; give another")
    if running.job.request["model"] == "broken":
        raise ZeroDivisionError("by nought")
    for done in range(total + 1):
        running.progress("count", done, total)
        time.sleep(0.05)
    return {"counted": total}

run.work = work
run.main()
"""


def spawn(job: Job) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", FAKE, str(job.folder)]
    return subprocess.Popen(command, start_new_session=True)


def fake(model: str = "good", count: int = 4) -> IdentifyRequest:
    return IdentifyRequest(model=model, batch_size=count)


def lives(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and is not yet reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_the_same_unfinished_request_is_one_job() -> None:
    first = create("identify", REQUEST)
    assert create("identify", REQUEST).id == first.id
    other = create("identify", REQUEST.model_copy(update={"batch_size": 3}))
    assert other.id != first.id
    assert {job.id for job in list_jobs()} == {first.id, other.id}
    assert cancel(first).state == "cancelled"
    assert create("identify", REQUEST).id not in {first.id, other.id}


def test_a_job_is_read_as_it_was_asked() -> None:
    made = create("identify", REQUEST)
    read = read_job(made.id)
    assert (read.verb, read.request) == ("identify", REQUEST.model_dump(mode="json"))
    assert read.created == made.created
    assert state_of(read).state == "queued"


@pytest.mark.parametrize("name", ["../../etc", "x", "20260101-000000-align-abcdef/..", ""])
def test_no_name_leads_out_of_the_runs(name: str) -> None:
    with pytest.raises(SafeNeuronError, match="no job id"):
        read_job(name)


def test_a_named_folder_is_linked_and_taken_once(tmp_path: Path, own_home: Path) -> None:
    place = tmp_path / "out"
    job = create("align", AlignRequest(model="a-model"), place)
    assert job.folder == place
    assert (own_home / "runs" / job.id).resolve() == place
    assert create("align", AlignRequest(model="a-model"), place).id == job.id
    with pytest.raises(SafeNeuronError, match="another"):
        create("align", AlignRequest(model="another"), place)
    busy = tmp_path / "busy"
    busy.mkdir()
    (busy / "thesis.txt").write_text("mine", "utf-8")
    with pytest.raises(SafeNeuronError, match="choose another -o"):
        create("align", AlignRequest(model="a-model"), busy)


def test_events_are_tailed_and_torn_lines_survived() -> None:
    job = create("identify", REQUEST)
    assert events(job) == ([], 0)
    append_event(job, {"n": 1})
    found, offset = events(job)
    assert [event["n"] for event in found] == [1]
    with job.file("events.jsonl").open("ab") as stream:
        stream.write(b'{"n": 2, "text": "caf')
    assert events(job, offset) == ([], offset)  # it may still be on its way
    append_event(job, {"n": 3})
    found, end = events(job, offset)
    assert [event["n"] for event in found] == [3]
    assert end == job.file("events.jsonl").stat().st_size
    assert [event["n"] for event in events(job)[0]] == [1, 3]


def test_a_job_runs_to_its_end() -> None:
    job = create("identify", fake())
    assert spawn(job).wait(60) == 0
    assert state_of(job).state == "done"
    assert result_of(job) == {"counted": 4}
    stages = [event for event in events(job)[0] if event["kind"] == "stage"]
    assert (stages[0]["done"], stages[-1]["done"]) == (0, 4)


def test_bad_input_fails_in_one_line() -> None:
    job = create("identify", fake("bad"))
    assert spawn(job).wait(60) != 0
    state = state_of(job)
    assert (state.state, state.error) == ("failed", "no model 'bad'; give another")


def test_a_fault_of_ours_is_in_the_log() -> None:
    job = create("identify", fake("broken"))
    assert spawn(job).wait(60) != 0
    assert state_of(job).error == "ZeroDivisionError: by nought"
    assert "Traceback" in job.file("log.txt").read_text("utf-8")


def test_cancel_stops_a_running_job() -> None:
    job = create("identify", fake(count=2000))
    process = spawn(job)
    wait_for(lambda: bool(events(job)[0][1:]))
    assert state_of(job).state == "running"
    assert cancel(job).state == "cancelling"
    process.wait(30)
    assert state_of(job).state == "cancelled"
    assert result_of(job) is None


def test_a_killed_job_is_lost_and_goes_on_when_started_again() -> None:
    job = create("identify", fake(count=100))
    process = spawn(job)
    wait_for(lambda: state_of(job).state == "running")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    assert state_of(job).state == "lost"
    assert create("identify", fake(count=100)).id == job.id
    assert spawn(job).wait(60) == 0
    state = state_of(job)
    assert (state.state, state.error) == ("done", None)


def test_a_reused_pid_is_not_the_job() -> None:
    job = create("identify", REQUEST)
    mine = {"pid": os.getpid(), "host": here(), "started": "1"}
    jobs.change_state(job, lambda old: old.model_copy(update={"state": "running"} | mine))
    assert state_of(job).state == "lost"


def test_another_machines_job_lives_by_its_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    job = create("identify", REQUEST)
    far = {"state": "running", "pid": 2, "host": "elsewhere", "heartbeat": time.time()}
    jobs.change_state(job, lambda old: old.model_copy(update=far))
    assert state_of(job).state == "running"
    old_beat = {"heartbeat": time.time() - 2 * jobs.SILENCE}
    jobs.change_state(job, lambda old: old.model_copy(update=old_beat))
    assert state_of(job).state == "running"  # a clock may have been set: it is looked at
    monkeypatch.setattr(jobs, "WATCH", 0.0)
    assert state_of(job).state == "lost"


def test_a_clock_set_back_loses_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeat lies in the future or the past, and still it beats."""
    monkeypatch.setattr(jobs, "WATCH", 0.0)
    job = create("identify", REQUEST)
    far: dict[str, object] = {"state": "running", "pid": 2, "host": "elsewhere"}
    for beats, shift in enumerate((-86_400.0, 86_400.0, -3600.0)):
        far |= {"heartbeat": time.time() + shift, "beats": beats}
        sign = functools.partial(State.model_copy, update=dict(far))
        jobs.change_state(job, sign)
        assert state_of(job).state == "running"


def test_a_second_process_leaves_a_live_job_alone() -> None:
    job = create("identify", fake(count=2000))
    first = spawn(job)
    wait_for(lambda: state_of(job).state == "running")
    assert spawn(job).wait(60) == 3
    assert state_of(job).pid == first.pid
    cancel(job)
    first.wait(30)


def work_off() -> None:
    """Run what waits in the queue, here and one after the other."""
    huey, _ = queue.queue()
    while task := huey.dequeue():
        huey.execute(task)


def test_the_queue_runs_jobs_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []

    def counted(job: Job, _: object) -> "subprocess.Popen[bytes]":
        alive.append(sum(state_of(other).state == "running" for other in list_jobs()))
        return spawn(job)

    monkeypatch.setattr(worker, "spawn", counted)
    made = [queue.launch("identify", fake(count=n)) for n in (2, 3)]
    again = queue.launch("identify", fake(count=2))
    assert again.id == made[0].id
    work_off()
    assert alive == [0, 0]
    assert [state_of(job).state for job in made] == ["done", "done"]


def test_a_process_that_never_begins_is_a_failed_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: Job, slot: object) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])

    monkeypatch.setattr(worker, "spawn", broken)
    job = queue.launch("identify", fake())
    work_off()
    assert state_of(job).state == "failed"
    assert "did not start" in (state_of(job).error or "")


def test_a_worker_stopped_while_a_process_starts_keeps_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopping = threading.Event()

    def starting(job: Job, slot: object) -> "subprocess.Popen[bytes]":
        stopping.set()
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        return subprocess.Popen(command, start_new_session=True)

    monkeypatch.setattr(worker, "spawn", starting)
    monkeypatch.setattr(worker, "_stopping", stopping)
    job = queue.launch("identify", fake())
    huey, _ = queue.queue()
    huey.execute(huey.dequeue())
    assert state_of(job).state == "queued"
    assert queue.waiting() == {job.id}


def test_the_command_line_watches_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.launch.spawn", lambda job, slot: spawn(job))
    heard: list[tuple[str, int, int]] = []
    result = run_to_end("identify", fake(), tmp_path / "a", lambda *step: heard.append(step))
    assert result == {"counted": 4}
    assert heard[-1] == ("count", 4, 4)
    monkeypatch.setattr("app.launch.spawn", None)  # done already: nothing is started
    assert run_to_end("identify", fake(), tmp_path / "a", lambda *_: None) == result
    monkeypatch.setattr("app.launch.spawn", lambda job, slot: spawn(job))
    with pytest.raises(SafeNeuronError, match="no model 'bad'"):
        run_to_end("identify", fake("bad"), tmp_path / "b", lambda *_: None)


def test_a_named_folder_is_gone_on_with_by_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.launch.spawn", lambda job, slot: spawn(job))
    said: list[str] = []

    def run(model: str, count: int = 4) -> dict[str, object]:
        return run_to_end("identify", fake(model, count), tmp_path / "a", silent, said.append)

    # Nobody to ask what the folder holds: it is the first request's for good.
    with pytest.raises(SafeNeuronError, match="no model 'bad'"):
        run("bad")
    with pytest.raises(SafeNeuronError, match="asked for otherwise"):
        run("good")

    whole, asked = True, []

    def holds(request: Any, folder: Path) -> bool:
        asked.append(request.batch_size)
        if request.batch_size > 6:
            raise SafeNeuronError("it holds another run")
        return whole

    monkeypatch.setitem(HOLDS, "identify", holds)
    # A mistake made first keeps nothing from being done right.
    assert run("good") == {"counted": 4}
    assert said == []
    assert run("good") == {"counted": 4}
    assert said == [f"{tmp_path / 'a'} holds it already: nothing was trained"]
    # What was deleted since is made again, and what is asked for besides is done.
    whole = False
    turns = state_of(read_folder(tmp_path / "a")).turn
    assert run("good") == {"counted": 4}
    assert state_of(read_folder(tmp_path / "a")).turn == turns + 1
    assert run("good", 6) == {"counted": 6}
    # Another run's folder stays as it is.
    with pytest.raises(SafeNeuronError, match="holds another run"):
        run("good", 7)
    job = read_folder(tmp_path / "a")
    assert (job.request["batch_size"], state_of(job).state) == (6, "done")
    assert asked[-1] == 7


def test_sigterm_stops_what_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.launch.spawn", lambda job, slot: spawn(job))
    sent: list[int] = []

    def told(stage: str, done: int, total: int) -> None:
        if 0 < done < total and not sent:
            sent.append(done)
            os.kill(os.getpid(), signal.SIGTERM)

    # Whoever ran before may have left a handler, which would be respected.
    usual = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            run_to_end("identify", fake(count=400), tmp_path / "a", told)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert ended.value.code == 128 + signal.SIGTERM
    assert state_of(read_folder(tmp_path / "a")).state == "cancelled"


def start(job: Job) -> "subprocess.Popen[bytes]":
    """The job's process as the worker starts it."""
    slot = take(Settings(), job.verb)
    assert slot is not None
    try:
        return spawn_real(job, slot)
    finally:
        slot.release()


def test_identify_and_attack_as_jobs(tiny_llama: Path, tmp_path: Path) -> None:
    for name, prompts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(prompts), "utf-8")
    sides = {name: str(tmp_path / f"{name}.json") for name in ("harmful", "harmless")}
    request = IdentifyRequest(model=str(tiny_llama), top=0.1, **sides)
    job = create("identify", request)
    assert start(job).wait(200) == 0, job.file("log.txt").read_text("utf-8")
    result = result_of(job)
    assert result is not None
    mask = read_mask(Path(result["mask"]))
    scores = pd.read_parquet(Path(result["mask"]).with_name("scores.parquet"))
    assert 0 < mask.count <= len(scores) // 10
    attack = AttackRequest(
        model=str(tiny_llama),
        mask=Path(result["mask"]),
        settings=("ORI", "FULL"),
        harmful=sides["harmful"],
        harmless=sides["harmless"],
        seeds=1,
        max_new_tokens=2,
        dtype="float32",
    )
    job = create("attack", attack)
    assert start(job).wait(200) == 0, job.file("log.txt").read_text("utf-8")
    result = result_of(job)
    assert result is not None
    read = read_attack(Path(result["attack"]))
    assert [setting.name for setting in read.settings] == ["ORI", "FULL"]


@pytest.mark.parametrize("kill", [False, True])
def test_serve_answers_and_leaves_no_process_behind(kill: bool) -> None:
    port = free_port()
    code = f"import sys; from app.serve import serve; sys.exit(serve({port}, '127.0.0.1'))"
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    lines = iter(server.stderr.readline, "")
    assert any(f"http://127.0.0.1:{port}" in line and "dashboard" in line for line in lines)
    children = psutil.Process(server.pid).children(recursive=True)
    assert len(children) >= 2  # the page server and the worker
    if kill:
        server.kill()
        assert server.wait(60) == -signal.SIGKILL
        psutil.wait_procs(children, timeout=60)
    else:
        server.terminate()
        assert server.wait(60) == 0
    server.stderr.close()
    assert not [child for child in children if lives(child)]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_serve_names_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SafeNeuronError, match="choose another --port"):
            serve(taken.getsockname()[1], "127.0.0.1")
