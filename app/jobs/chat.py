"""A model that stays in memory and answers: the Prune lab's process, as a job.

Questions lie in the job's folder, ``questions/0001.json`` and so on, and beside each what is
told of it while it is answered, ``0001.jsonl``. The process takes them in order and ends when
nobody has asked for a while, or sooner where another job waits for the device. Killed and
started again it answers what is still open.
"""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from filelock import FileLock
from pydantic import ValidationError

from analysis.chat import Answered, Arm, ChatRequest, Question, answer
from analysis.requests import parse_request
from app.jobs.events import append_line, read_lines
from app.jobs.folder import LARGEST, Job, list_jobs, read_job, state_of
from app.jobs.queue import launch
from toolkit.errors import SafeNeuronError
from toolkit.files import write_atomically
from toolkit.judge.refusal import Verdict

if TYPE_CHECKING:
    from app.jobs.run import Running

NUMBER = re.compile(r"[0-9]{4}")
LOADING = "loading the model"
MOST = 9999  # questions of one session
POLL = 0.1  # seconds between looks for a question
GIVE_WAY = 15.0  # seconds without a question after which other jobs go first
LOOK = 2.0  # seconds between looks for other jobs
TELL = 0.1  # seconds between two words of an answer that are written down
PATIENCE = 20.0  # seconds that a session which is ending has for it


class StoppedError(Exception):
    """Raised out of an answer that nobody wants any more."""


@dataclass
class Told:
    """How a question stands, by what was told of it.

    Args:
        phase: ``waiting``, ``answering``, ``answered``, ``stopped`` or ``failed``.
        texts: each arm's answer so far.
        answers: each arm's answer with its verdict, once all have ended.
        error: why it failed, in one line.
    """

    phase: str = "waiting"
    texts: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Answered] = field(default_factory=dict)
    error: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more will be told."""
        return self.phase in {"answered", "stopped", "failed"}


class Desk:
    """Where one session's questions lie.

    Args:
        job: the session.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folder = job.file("questions")

    def _lock(self) -> FileLock:
        self._folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self._folder / ".lock")

    def _closed(self) -> Path:
        return self._folder / ".closed"

    def _file(self, number: str, end: str) -> Path:
        if not NUMBER.fullmatch(number):
            raise SafeNeuronError(f"{number[:20]!r} is no question of this session")
        return self._folder / f"{number}.{end}"

    def numbers(self) -> list[str]:
        """The questions, in the order they were asked."""
        if not self._folder.is_dir():
            return []
        return sorted(p.stem for p in self._folder.glob("*.json") if NUMBER.fullmatch(p.stem))

    def put(self, question: Question) -> str | None:
        """Ask; the question's number, or None where the session is over.

        Raises:
            SafeNeuronError: the session is full, or the folder cannot be written.
        """
        with self._lock():
            # A session that waits to go on opens again when it does.
            if self._closed().exists() and state_of(self._job).state != "queued":
                return None
            number = int((self.numbers() or ["0000"])[-1]) + 1
            if number > MOST:
                raise SafeNeuronError("this session is full; close the model and ask again")
            write_atomically(self._file(f"{number:04d}", "json"), question.model_dump_json())
        return f"{number:04d}"

    def question(self, number: str) -> Question:
        """What was asked.

        Raises:
            SafeNeuronError: there is no such question, or the file was edited.
        """
        path = self._file(number, "json")
        try:
            if path.stat().st_size > LARGEST:
                raise SafeNeuronError(f"question {number} is too large; ask again")
            return Question.model_validate_json(path.read_bytes())
        except OSError as error:
            raise SafeNeuronError(f"no question {number} in this session; ask again") from error
        except ValidationError as error:
            raise SafeNeuronError(f"question {number} was edited; ask again") from error

    def told(self, number: str) -> Told:
        """How a question stands."""
        told = Told()
        for event in read_lines(self._file(number, "jsonl"))[0]:
            kind, arm = event.get("kind"), str(event.get("arm"))
            if kind == "begin":  # anew, after a kill
                told = Told("answering")
            elif kind == "text":
                told.texts[arm] = told.texts.get(arm, "") + str(event.get("text", ""))
            elif kind == "answer":
                told.answers[arm] = _answered(event)
                told.texts[arm] = told.answers[arm].text
            elif kind == "end":
                told.phase, told.error = str(event.get("phase")), str(event.get("error") or "")
        return told

    def tell(self, number: str, **event: object) -> None:
        """Write down what happens to a question."""
        append_line(self._file(number, "jsonl"), event)

    def stop(self, number: str) -> None:
        """Ask that a question be answered no further."""
        self._file(number, "stop").touch()

    def unwanted(self, number: str) -> bool:
        """Whether somebody asked for that."""
        return self._file(number, "stop").exists()

    def open(self) -> None:
        """Take questions, in the session's own process."""
        with self._lock():
            self._closed().unlink(missing_ok=True)

    def close(self, done: set[str]) -> bool:
        """Take no more questions, unless one has come; whether it is closed."""
        with self._lock():
            if set(self.numbers()) - done:
                return False
            self._closed().touch()
        return True


def _answered(event: dict[str, Any]) -> Answered:
    verdict, tokens = event.get("verdict"), event.get("tokens")
    judged: Verdict = next((v for v in get_args(Verdict) if v == verdict), "degenerate")
    return Answered(
        str(event.get("text", "")),
        tokens if isinstance(tokens, int) else 0,
        judged,
        str(event.get("why", "")),
    )


def ask(request: ChatRequest, question: Question) -> tuple[Job, str]:
    """Put a question to a model's session, which is started where none runs.

    Returns:
        The session and the question's number in it.

    Raises:
        SafeNeuronError: it cannot be written, or the queue cannot be reached.
    """
    end = time.monotonic() + PATIENCE
    while True:
        job = launch("chat", request)
        number = Desk(job).put(question)
        if number is not None:
            return job, number
        if time.monotonic() > end:
            raise SafeNeuronError("the model is being closed; ask again in a moment")
        time.sleep(POLL)


def session_of(request: ChatRequest) -> Job | None:
    """The newest session that was asked for so."""
    asked = request.model_dump(mode="json")
    return next((j for j in list_jobs() if j.verb == "chat" and j.request == asked), None)


def read_session(name: str) -> Job:
    """A session by its job's id.

    Raises:
        SafeNeuronError: there is no such job, or it is another kind.
    """
    job = read_job(name)
    if job.verb != "chat":
        raise SafeNeuronError(f"{name} is no chat; the Jobs page shows what it is")
    return job


def keep_answering(running: "Running") -> dict[str, Any] | None:
    """Answer a session's questions until nobody asks; None when it was cancelled."""
    job = running.job
    request = parse_request(ChatRequest, job.request)
    desk = Desk(job)
    desk.open()

    import torch

    from toolkit.models.load import load_model

    running.progress(LOADING, 0, 1)
    loaded = load_model(request.model, dtype=getattr(torch, request.dtype))
    running.progress(LOADING, 1, 1)
    done = {number for number in desk.numbers() if desk.told(number).over}
    quiet = looked = time.monotonic()
    while not running.should_stop():
        waiting = [number for number in desk.numbers() if number not in done]
        if waiting:
            _answer(
                running, desk, waiting[0], lambda q, heard: answer(loaded, q, heard, request.force)
            )
            if running.should_stop():
                break
            done.add(waiting[0])
            answered = {"done": len(done), "total": len(desk.numbers())}
            running.event({"kind": "stage", "stage": "questions answered", **answered})
            quiet = time.monotonic()
            continue
        now = time.monotonic()
        late = now - quiet > request.idle
        if not late and now - quiet > GIVE_WAY and now - looked > LOOK:
            looked = now
            late = any(state_of(other).state == "queued" for other in list_jobs())
        if late and desk.close(done):
            return {"questions": len(done)}
        time.sleep(POLL)
    return None


Answering = Callable[[Question, Callable[[Arm, str], None]], dict[Arm, Answered]]


def _answer(running: "Running", desk: Desk, number: str, answering: Answering) -> None:
    """Answer one question; what is wrong with it ends it and not the session."""
    if desk.unwanted(number):
        desk.tell(number, kind="end", phase="stopped")
        return
    desk.tell(number, kind="begin")
    unsaid: dict[Arm, str] = {}
    last = 0.0

    def heard(arm: Arm, new: str) -> None:
        nonlocal last
        unsaid[arm] = unsaid.get(arm, "") + new
        if time.monotonic() - last < TELL:
            return
        last = time.monotonic()
        for name in list(unsaid):
            desk.tell(number, kind="text", arm=name, text=unsaid.pop(name))
        if running.should_stop() or desk.unwanted(number):
            raise StoppedError

    try:
        answers = answering(desk.question(number), heard)
    except StoppedError:
        # A session that is stopped leaves the question open: it is answered when it goes on.
        if desk.unwanted(number):
            desk.tell(number, kind="end", phase="stopped")
        return
    except SafeNeuronError as error:
        desk.tell(number, kind="end", phase="failed", error=" ".join(str(error).split()))
        return
    for arm, told in answers.items():
        desk.tell(number, kind="answer", arm=arm, **asdict(told))
    desk.tell(number, kind="end", phase="answered")
