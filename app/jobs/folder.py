"""The job folder: what a page, the command line and the job's own process agree on.

``job.json`` (what was asked), ``state.json`` (how it stands), ``events.jsonl`` (what
happened, appended), ``log.txt`` and ``result.json``. Jobs lie in ``runs/<id>`` under
``SAFENEURON_HOME``; one whose folder the user named is linked from there.
"""

import json
import os
import re
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from analysis.requests import Request
from app.jobs.process import end_marked, here, started
from app.jobs.verbs import VERBS, Verb, parse_asked, parse_verb
from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, write_atomically
from toolkit.home import home

Phase = Literal["queued", "running", "cancelling", "cancelled", "failed", "lost", "done"]
UNFINISHED: frozenset[Phase] = frozenset({"queued", "running", "cancelling", "lost"})
ALIVE: frozenset[Phase] = frozenset({"running", "cancelling"})
STOPPED: frozenset[Phase] = frozenset({"cancelled", "failed", "lost"})
ID = re.compile(rf"[0-9]{{8}}-[0-9]{{6}}-({'|'.join(VERBS)})-[0-9a-f]{{6}}")
# Another machine's process cannot be asked for; its heartbeat comes every few seconds.
SILENCE = 60.0
WATCH = 7.0  # seconds that a silent job is looked at before it is called lost
LARGEST = 1 << 20  # bytes of a job.json; ours have a few hundred

_seen: dict[Path, tuple[int, float]] = {}


class State(BaseModel):
    """``state.json``: how a job stands.

    Args:
        state: one of seven.
        host: where its process is, as :func:`app.jobs.process.here` names places.
        pid, started: its process there.
        heartbeat: the clock's time when it last gave a sign of life.
        beats: how many signs of life it gave; unlike the clock, it only grows.
        kill: it is to end without saving.
        error: why it failed, in one line.
        turn: how often it was put back into the queue; tells one run of it from the next.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: Phase = "queued"
    host: str | None = None
    # Neither init nor, as a signal's target, "every process" and "my group".
    pid: int | None = Field(default=None, gt=1)
    started: str | None = None
    heartbeat: float | None = None
    beats: int = 0
    kill: bool = False
    error: str | None = None
    turn: int = 0

    def silent(self) -> bool:
        """Whether no sign of life came lately, by a clock that may have been set."""
        return abs(time.time() - (self.heartbeat or 0.0)) >= SILENCE


@dataclass(frozen=True)
class Job:
    """One job, as it was asked for.

    Args:
        id: sorts by time of creation.
        verb: what it does, one of :data:`app.jobs.verbs.VERBS`.
        request: the request's fields, JSON values.
        folder: where its files are.
        created: when, in UTC.
    """

    id: str
    verb: Verb
    request: dict[str, Any]
    folder: Path
    created: datetime

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.folder / name


def runs() -> Path:
    """The folder of all jobs."""
    return home() / "runs"


Holds = Callable[[Any, Path], bool]
"""Whether a folder holds what a request asks for; raises where it holds something else."""


def create(
    verb: Verb, request: Request, folder: Path | None = None, holds: Holds | None = None
) -> Job:
    """Make a job, or find it: the same unfinished request gives the same job.

    Args:
        verb: what to do.
        request: validated.
        folder: the job's folder; by default one under ``runs``.
        holds: asked where the folder has a job that was asked for otherwise, and does not run:
            unless it objects, that job is from now on this one.

    Raises:
        SafeNeuronError: the folder holds something else, or cannot be written.
    """
    asked = request.model_dump(mode="json")
    runs().mkdir(parents=True, exist_ok=True)
    with FileLock(runs() / ".lock"):
        if folder is not None:
            folder = folder.expanduser().absolute()
            if (folder / "job.json").exists():
                return _same(folder, verb, asked, request, holds)
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise SafeNeuronError(f"{folder} is there already and no job's; choose another -o")
        else:
            for job in list_jobs():
                same = (job.verb, job.request) == (verb, asked)
                if same and state_of(job).state in UNFINISHED:
                    return job
        now = datetime.now(UTC)
        name = f"{now:%Y%m%d-%H%M%S}-{verb}-{secrets.token_hex(3)}"
        place = folder or runs() / name
        _write(Job(name, verb, asked, place, now))
        write_atomically(place / "state.json", State().model_dump_json())
        if folder is not None:
            (runs() / name).symlink_to(folder, target_is_directory=True)
    return read_folder(place)


def _same(
    folder: Path, verb: Verb, asked: dict[str, Any], request: Request, holds: Holds | None
) -> Job:
    job = read_folder(folder)
    if (job.verb, job.request) != (verb, asked):
        if job.verb != verb or holds is None or state_of(job).state in {"queued", *ALIVE}:
            raise SafeNeuronError(
                f"{folder} holds another {job.verb} job, asked for otherwise; choose another -o"
            )
        holds(request, folder)
        job = replace(job, request=asked)
        _write(job)
        requeue(job, done=True)
    link = runs() / job.id
    if not link.exists() and not link.is_symlink():
        link.symlink_to(folder, target_is_directory=True)
    return job


def _write(job: Job) -> None:
    values = {"id": job.id, "verb": job.verb, "request": job.request}
    text = canonical_json(values | {"created": job.created.isoformat()})
    write_atomically(job.file("job.json"), text + "\n")


def read_folder(folder: Path) -> Job:
    """Read the job in a folder.

    Raises:
        SafeNeuronError: there is none, or what it says was asked for is no good.
    """
    path = folder / "job.json"
    try:
        if path.stat().st_size > LARGEST:
            raise SafeNeuronError(f"{path} is too large for a job; delete {folder}")
        data = json.loads(path.read_text("utf-8"))
        name, asked = data["id"], data["request"]
        created = datetime.fromisoformat(data["created"])
        verb = parse_verb(data["verb"])
        if not ID.fullmatch(name) or name.split("-")[2] != verb or created.tzinfo is None:
            raise SafeNeuronError("the id, the verb and the time do not fit")
        return Job(name, verb, parse_asked(verb, asked), folder, created)
    except SafeNeuronError as error:
        raise SafeNeuronError(f"{path}: {error}") from error
    except OSError as error:
        raise SafeNeuronError(f"no job in {folder}: 'safeneuron serve' makes them") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SafeNeuronError(
            f"{path} is no job's; it was edited, so start the job anew"
        ) from error


def read_job(name: str) -> Job:
    """Read a job by its id.

    Raises:
        SafeNeuronError: it is no id, there is no such job, or its folder is another's.
    """
    if not ID.fullmatch(name):
        raise SafeNeuronError(f"{name[:60]!r} is no job id; the Jobs page lists them")
    if not (runs() / name / "job.json").is_file():
        raise SafeNeuronError(f"no job {name}; the Jobs page lists them")
    job = read_folder(runs() / name)
    if job.id != name:
        raise SafeNeuronError(f"{runs() / name} holds {job.id}; it was edited, so delete it")
    return job


def names() -> list[str]:
    """The ids of all job folders, readable or not."""
    found = [path.name for path in runs().iterdir()] if runs().is_dir() else []
    return sorted(filter(ID.fullmatch, found))


def list_jobs() -> list[Job]:
    """Every readable job, newest first."""
    found = []
    for name in names():
        try:
            found.append(read_job(name))
        except SafeNeuronError:
            continue  # moved, deleted or edited: `broken_jobs` says which
    # Ids count seconds; two jobs may be of the same one.
    return sorted(found, key=lambda job: job.created, reverse=True)


def broken_jobs() -> list[str]:
    """One line for each job folder that cannot be read."""
    lines = []
    for name in names():
        try:
            read_job(name)
        except SafeNeuronError as error:
            lines.append(" ".join(str(error).split()))
    return lines


def state_of(job: Job) -> State:
    """How a job stands now.

    A job whose process is gone is ``lost``; one that went away while it was being
    cancelled is ``cancelled``.
    """
    try:
        state = State.model_validate_json(job.file("state.json").read_text("utf-8"))
    except (OSError, ValidationError):
        return State(state="lost", error="state.json cannot be read")
    if state.state in ALIVE and not _is_alive(job.folder, state):
        gone: Phase = "lost" if state.state == "running" else "cancelled"
        return state.model_copy(update={"state": gone})
    return state


def _is_alive(folder: Path, state: State) -> bool:
    if state.host == here():
        return state.pid is not None and started(state.pid) == state.started
    if not state.silent():
        return True
    # It may be that a clock was set: what counts is whether it gives a sign while we look.
    now = time.monotonic()
    beats, since = _seen.get(folder, (-1, now))
    if beats != state.beats:
        _seen[folder] = (state.beats, now)
        return True
    return now - since < WATCH


def change_state(job: Job, change: Callable[[State], State | None]) -> State:
    """Replace a job's state by ``change`` of it, with no writer in between.

    ``change`` returns None to leave it as it is.
    """
    with FileLock(job.file(".state.lock")):
        state = state_of(job)
        new = change(state)
        if new is not None:
            write_atomically(job.file("state.json"), new.model_dump_json())
    return new or state


def settle(job: Job) -> State:
    """Write down that a job was lost, and end what is left of its processes."""
    state = state_of(job)
    if state.state in {"lost", "cancelled"} and state.pid is not None:
        # No pid: nobody looks for its process again.
        state = change_state(
            job,
            lambda old: (
                old.model_copy(update={"pid": None}) if old.state in {"lost", "cancelled"} else None
            ),
        )
        if state.state == "lost":
            end_marked(job.folder)
    return state


def requeue(job: Job, done: bool = False) -> State:
    """Put a job that was cancelled, failed or lost, or with ``done`` ended well, in the queue."""
    settle(job)
    ended = {*STOPPED, "done"} if done else STOPPED
    return change_state(job, lambda old: State(turn=old.turn + 1) if old.state in ended else None)


def cancel(job: Job) -> State:
    """Stop a job: at once while it is queued, else as soon as it can save.

    Asked a second time while it is stopping, its processes are killed.
    """

    def mark(old: State) -> State | None:
        if old.state in {"queued", "lost"}:
            return old.model_copy(update={"state": "cancelled", "error": None})
        if old.state in ALIVE:
            again = old.state == "cancelling"
            return old.model_copy(update={"state": "cancelling", "kill": again})
        return None

    after = change_state(job, mark)
    if after.state != "cancelling" or after.host != here() or after.pid is None:
        return after  # a process elsewhere reads its orders with its next heartbeat
    if after.kill:
        end_marked(job.folder)
        return state_of(job)
    signal_process(after, signal.SIGTERM)
    return after


def signal_process(state: State, number: signal.Signals) -> None:
    """Signal a job's own process, if it runs here and is still that process."""
    if state.host == here() and state.pid is not None and started(state.pid) == state.started:
        try:
            os.kill(state.pid, number)
        except ProcessLookupError:
            return  # it ended meanwhile
