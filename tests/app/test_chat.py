"""The Prune lab's process on a tiny model: it answers, streams, stops when idle, survives."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from analysis.chat import Arm, ChatRequest, Question, Removal, Said
from app.jobs import queue
from app.jobs.chat import Desk, ask, read_session, session_of
from app.jobs.events import read_lines
from app.jobs.folder import Job, cancel, create, list_jobs, read_job, state_of
from app.jobs.process import MARK
from app.jobs.start import spawn
from tests.app.conftest import Process
from tests.app.test_jobs import REQUEST, start, wait_for
from tests.studies import drawn_study
from tests.tiny import HARMFUL
from toolkit.errors import SafeNeuronError

PROMPT = HARMFUL[0]
WIDTHS = [64, 64, 64]
ALL: dict[Arm, tuple[Said, ...]] = {"whole": (), "pruned": (), "random": ()}
# A session whose model takes its time, so that an answer is surely met while it is made.
SLOW = """
import time
import app.jobs.chat as chat, app.jobs.run as run

answer = chat.answer

def slow(loaded, question, heard, force):
    def late(arm, new):
        time.sleep(0.05)
        heard(arm, new)
    return answer(loaded, question, late, force)

chat.answer = slow
run.main()
"""


def start_slow(job: Job) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(job.folder)],
        start_new_session=True,
        env=os.environ | {MARK: str(job.folder.resolve())},
    )


def session(model: Path, idle: float = 300.0) -> ChatRequest:
    return ChatRequest(model=str(model), dtype="float32", idle=idle)


def question(model: Path, tokens: int = 8, **more: object) -> Question:
    study = drawn_study(model, WIDTHS)
    values = {"removal": Removal(study=study.key, share=0.2), "before": ALL, "prompt": PROMPT}
    return Question.model_validate({**values, "max_new_tokens": tokens, **more})


def wait_over(job: Job, number: str) -> None:
    wait_for(lambda: Desk(job).told(number).over, 120)


def test_a_session_answers_as_the_model_does(tiny_llama: Path, processes: list[Process]) -> None:
    from analysis.chat import answer
    from toolkit.models.load import load_model

    asked = question(tiny_llama)
    job, number = ask(session(tiny_llama), asked)
    assert state_of(job).state == "queued"
    assert Desk(job).told(number).phase == "waiting"
    processes.append(start(job))
    wait_over(job, number)
    told = Desk(job).told(number)
    assert told.phase == "answered"
    assert told.answers == answer(load_model(str(tiny_llama)), asked, lambda arm, new: None)
    # Another tab asks the same session, which has the model already.
    again, second = ask(session(tiny_llama), asked.model_copy(update={"prompt": "Hi"}))
    assert (again.id, second) == (job.id, "0002")
    wait_over(job, second)
    assert set(Desk(job).told(second).answers) == set(ALL)
    assert session_of(session(tiny_llama)) == read_session(job.id)
    cancel(job)
    processes[0].wait(60)
    assert state_of(job).state == "cancelled"


def test_words_come_while_it_is_answered(tiny_llama: Path, processes: list[Process]) -> None:
    job, number = ask(session(tiny_llama), question(tiny_llama, 200))
    processes.append(start(job))
    seen: list[int] = []

    def grows() -> bool:
        told = Desk(job).told(number)
        seen.append(sum(map(len, told.texts.values())))
        return told.over

    wait_for(grows, 120)
    told = Desk(job).told(number)
    partial = [length for length in seen if 0 < length < max(seen)]
    kinds = [event["kind"] for event in read_lines(job.file("questions") / "0001.jsonl")[0]]
    assert kinds[0] == "begin"
    assert kinds[-4:] == ["answer"] * 3 + ["end"]
    assert partial or kinds.count("text") > 3
    assert set(told.texts) == set(ALL)


def test_two_tabs_ask_at_once_and_one_model_is_loaded(
    tiny_llama: Path, processes: list[Process]
) -> None:
    asked = question(tiny_llama)
    made: list[tuple[Job, str]] = []
    together = threading.Barrier(4)

    def press() -> None:
        together.wait()
        made.append(ask(session(tiny_llama), asked))

    tabs = [threading.Thread(target=press) for _ in range(4)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert len({job.id for job, _ in made}) == 1
    assert sorted(number for _, number in made) == ["0001", "0002", "0003", "0004"]
    job = made[0][0]
    processes.append(start(job))
    for _, number in made:
        wait_over(job, number)
    texts = [Desk(job).told(number).texts for _, number in made]
    assert texts.count(texts[0]) == 4


def test_it_stops_when_idle_and_a_later_question_starts_it_anew(
    tiny_llama: Path, processes: list[Process]
) -> None:
    asked = question(tiny_llama)
    job, number = ask(session(tiny_llama, 0.5), asked)
    processes.append(start(job))
    assert processes[0].wait(120) == 0
    assert state_of(job).state == "done"
    assert Desk(job).told(number).phase == "answered"
    later, number = ask(session(tiny_llama, 0.5), asked)
    assert later.id != job.id
    assert number == "0001"
    processes.append(start(later))
    wait_over(later, number)


def test_it_gives_way_to_a_job_that_waits(
    tiny_llama: Path, processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = ask(session(tiny_llama), question(tiny_llama))
    quick = (
        "import app.jobs.chat as c; c.GIVE_WAY = c.LOOK = 0.5; import app.jobs.run as r; r.main()"
    )
    processes.append(subprocess.Popen([sys.executable, "-c", quick, str(job.folder)]))
    wait_over(job, "0001")
    time.sleep(2)
    assert state_of(job).state == "running"
    create("identify", REQUEST)
    assert processes[0].wait(60) == 0
    assert state_of(job).state == "done"


def test_killed_in_an_answer_it_is_lost_and_answers_when_it_goes_on(
    tiny_llama: Path, processes: list[Process]
) -> None:
    asked = question(tiny_llama, 60)
    job, number = ask(session(tiny_llama), asked)
    processes.append(start_slow(job))
    wait_for(lambda: Desk(job).told(number).phase == "answering", 120)
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].wait()
    assert state_of(job).state == "lost"
    assert not Desk(job).told(number).over
    # The next question finds the same session and lets it go on.
    again, second = ask(session(tiny_llama), asked)
    assert (again.id, second) == (job.id, "0002")
    assert state_of(job).state == "queued"
    processes.append(start(job))
    for name in (number, second):
        wait_over(job, name)
    first, last = (Desk(job).told(name) for name in (number, second))
    assert first.answers == last.answers
    assert first.texts == {arm: told.text for arm, told in first.answers.items()}


def test_one_answer_is_stopped_and_the_session_goes_on(
    tiny_llama: Path, processes: list[Process]
) -> None:
    job, number = ask(session(tiny_llama), question(tiny_llama, 60))
    waits = Desk(job).put(question(tiny_llama, 60))
    assert waits is not None
    Desk(job).stop(waits)
    processes.append(start_slow(job))
    wait_for(lambda: Desk(job).told(number).phase == "answering", 120)
    Desk(job).stop(number)
    for name in (number, waits):
        wait_over(job, name)
    assert Desk(job).told(waits).phase == "stopped"
    assert Desk(job).told(waits).texts == {}
    asked = Desk(job).put(question(tiny_llama))
    assert asked is not None
    wait_over(job, asked)
    assert Desk(job).told(asked).phase == "answered"


def test_a_bad_question_ends_itself_alone(tiny_llama: Path, processes: list[Process]) -> None:
    bad = question(tiny_llama, removal=Removal(study="0" * 40))
    job, number = ask(session(tiny_llama), bad)
    edited = Desk(job).put(question(tiny_llama))
    assert edited is not None
    job.file(f"questions/{edited}.json").write_text('{"prompt": ["<script>"]}', "utf-8")
    good = Desk(job).put(question(tiny_llama))
    assert good is not None
    processes.append(start(job))
    for name in (number, edited, good):
        wait_over(job, name)
    told = [Desk(job).told(name) for name in (number, edited, good)]
    assert [one.phase for one in told] == ["failed", "failed", "answered"]
    assert "no study 000000000000" in told[0].error
    assert told[1].error == f"question {edited} was edited; ask again"
    assert state_of(job).state == "running"


def test_a_model_that_does_not_load_fails_the_session(processes: list[Process]) -> None:
    job, number = ask(
        ChatRequest(model="no-such-model"),
        Question(removal=Removal(study="ab12"), before=ALL, prompt="Hi"),
    )
    processes.append(start(job))
    assert processes[0].wait(120) == 2
    assert state_of(job).state == "failed"
    assert "no model 'no-such-model'" in (state_of(job).error or "")
    assert Desk(job).told(number).phase == "waiting"


def test_a_session_that_closes_takes_no_question(tiny_llama: Path) -> None:
    job, number = ask(session(tiny_llama), question(tiny_llama))
    desk = Desk(job)
    assert not desk.close(set())  # one is open
    assert desk.close({number})
    # It waits, so it will open again.
    assert desk.put(question(tiny_llama)) == "0002"
    cancel(job)
    assert desk.put(question(tiny_llama)) is None


@pytest.mark.parametrize("number", ["../../x", "1", "", "00001", "0001/..", "<script>"])
def test_no_number_leads_out_of_the_session(number: str) -> None:
    job = create("chat", ChatRequest(model="a-model"))
    for read in (Desk(job).question, Desk(job).told, Desk(job).stop):
        with pytest.raises(SafeNeuronError, match="no question"):
            read(number)


def test_what_was_told_may_be_edited_by_hand() -> None:
    job = create("chat", ChatRequest(model="a-model"))
    path = job.file("questions") / "0001.jsonl"
    path.parent.mkdir()
    lines = [{"kind": "begin"}, {"kind": "text", "arm": ["x"], "text": 3}, {"kind": 7}]
    lines += [{"kind": "answer", "arm": "whole", "verdict": "<b>", "tokens": "many"}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n{\n", "utf-8")
    told = Desk(job).told("0001")
    assert told.phase == "answering"
    assert told.answers["whole"].verdict == "degenerate"
    with pytest.raises(SafeNeuronError, match="is no chat"):
        read_session(create("identify", REQUEST).id)


def test_the_queue_starts_a_session(tiny_llama: Path) -> None:
    job, _ = ask(session(tiny_llama), question(tiny_llama))
    assert queue.waiting() == {job.id}
    assert [listed.id for listed in list_jobs()] == [job.id]
    assert read_job(job.id).verb == "chat"
    assert callable(spawn)


def test_the_command_line_chats(tiny_llama: Path) -> None:
    study = drawn_study(tiny_llama, WIDTHS)
    command = [sys.executable, "-c", "from app.cli import main; main()", "chat", str(tiny_llama)]
    command += ["--dtype", "float32", "--max-new-tokens", "6", "--share", "0.2"]
    one = [*command, "--prompt", PROMPT, "--json"]
    done = subprocess.run(one, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["removed"] == int(0.2 * 192)
    assert set(told["answers"]) == set(ALL)
    several = subprocess.run(
        [*command, "--study", study.key[:8], "--no-random"],
        input=f"{PROMPT}\n\nAnd then?\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert several.stdout.count("[whole: ") == several.stdout.count("[without the neurons: ") == 2
    assert told["answers"]["whole"]["text"] in several.stdout
    none = subprocess.run(
        [*command, "--study", "f" * 40], check=False, capture_output=True, text=True
    )
    assert none.returncode == 2
    assert "no identify entry" in none.stderr
