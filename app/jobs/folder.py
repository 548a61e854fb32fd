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
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from analysis.requests import (
    AlignRequest,
    AttackRequest,
    IdentifyRequest,
    Request,
    RoundsRequest,
)
from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, write_atomically
from toolkit.home import home

Verb = Literal["identify", "attack", "align", "rounds"]
Phase = Literal["queued", "running", "cancelling", "cancelled", "failed", "lost", "done"]
REQUESTS: dict[str, type[Request]] = {
    "identify": IdentifyRequest,
    "attack": AttackRequest,
    "align": AlignRequest,
    "rounds": RoundsRequest,
}
UNFINISHED: frozenset[Phase] = frozenset({"queued", "running", "cancelling", "lost"})
ALIVE: frozenset[Phase] = frozenset({"running", "cancelling"})
ID = re.compile(r"[0-9]{8}-[0-9]{6}-(identify|attack|align|rounds)-[0-9a-f]{6}")
# Another machine's process cannot be asked for; its heartbeat comes every few seconds.
SILENCE = 60.0


class State(BaseModel):
    """``state.json``: how a job stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Phase = "queued"
    host: str | None = None
    pid: int | None = None
    process_started: float | None = None
    heartbeat: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Job:
    """One job, as it was asked for.

    Args:
        id: sorts by time of creation.
        verb: identify, attack, align or rounds.
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


def create(verb: Verb, request: Request, folder: Path | None = None) -> Job:
    """Make a job, or find it: the same unfinished request gives the same job.

    Args:
        verb: what to do.
        request: validated.
        folder: the job's folder; by default one under ``runs``.

    Raises:
        SafeNeuronError: the folder holds something else, or cannot be written.
    """
    asked = request.model_dump(mode="json")
    runs().mkdir(parents=True, exist_ok=True)
    with FileLock(runs() / ".lock"):
        if folder is not None:
            folder = folder.expanduser().absolute()
            if (folder / "job.json").exists():
                return _same(folder, verb, asked)
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
        write_atomically(place / "state.json", State().model_dump_json())
        values = {"id": name, "verb": verb, "request": asked, "created": now.isoformat()}
        write_atomically(place / "job.json", canonical_json(values) + "\n")
        if folder is not None:
            (runs() / name).symlink_to(folder, target_is_directory=True)
    return read_folder(place)


def _same(folder: Path, verb: Verb, asked: dict[str, Any]) -> Job:
    job = read_folder(folder)
    if (job.verb, job.request) != (verb, asked):
        raise SafeNeuronError(
            f"{folder} holds another {job.verb} job, asked for otherwise; choose another -o"
        )
    link = runs() / job.id
    if not link.exists() and not link.is_symlink():
        link.symlink_to(folder, target_is_directory=True)
    return job


def read_folder(folder: Path) -> Job:
    """Read the job in a folder.

    Raises:
        SafeNeuronError: there is none.
    """
    try:
        data = json.loads((folder / "job.json").read_text("utf-8"))
        if data["verb"] not in REQUESTS or not ID.fullmatch(data["id"]):
            raise SafeNeuronError(f"{folder}: job.json names no known job")
        return Job(
            id=data["id"],
            verb=data["verb"],
            request=dict(data["request"]),
            folder=folder,
            created=datetime.fromisoformat(data["created"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SafeNeuronError(f"no job in {folder}: 'safeneuron serve' makes them") from error


def read_job(name: str) -> Job:
    """Read a job by its id.

    Raises:
        SafeNeuronError: it is no id, or there is no such job.
    """
    if not ID.fullmatch(name):
        raise SafeNeuronError(f"{name[:60]!r} is no job id; the Runs page lists them")
    if not (runs() / name / "job.json").is_file():
        raise SafeNeuronError(f"no job {name}; the Runs page lists them")
    return read_folder(runs() / name)


def list_jobs() -> list[Job]:
    """Every readable job, newest first."""
    found = []
    names = [path.name for path in runs().iterdir()] if runs().is_dir() else []
    for name in filter(ID.fullmatch, names):
        try:
            found.append(read_folder(runs() / name))
        except SafeNeuronError:
            continue  # its folder was moved or deleted
    # Ids count seconds; two jobs may be of the same one.
    return sorted(found, key=lambda job: job.created, reverse=True)


def state_of(job: Job) -> State:
    """How a job stands now.

    A job whose process is gone is ``lost``; one that went away while it was being
    cancelled is ``cancelled``.
    """
    try:
        state = State.model_validate_json(job.file("state.json").read_text("utf-8"))
    except (OSError, ValidationError):
        return State(state="lost", error="state.json cannot be read")
    if state.state in ALIVE and not _is_alive(state):
        gone: Phase = "lost" if state.state == "running" else "cancelled"
        return state.model_copy(update={"state": gone})
    return state


def _is_alive(state: State) -> bool:
    if state.host != socket.gethostname():
        return time.time() - (state.heartbeat or 0.0) < SILENCE
    try:
        process = psutil.Process(state.pid)
        started = process.create_time()
    except psutil.NoSuchProcess:
        return False
    # A pid is used again; together with its start time it is one process.
    same = abs(started - (state.process_started or 0.0)) < 1.0
    return same and process.status() != psutil.STATUS_ZOMBIE


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


def requeue(job: Job) -> State:
    """Put a job that was cancelled, failed or lost back into the queue's hands."""
    stopped = {"cancelled", "failed", "lost"}
    return change_state(job, lambda old: State() if old.state in stopped else None)


def cancel(job: Job) -> State:
    """Stop a job: at once while it is queued, else as soon as it can save.

    Asked a second time while it is stopping, its processes are killed.
    """
    before = state_of(job)

    def mark(old: State) -> State | None:
        if old.state in {"queued", "lost"}:
            return old.model_copy(update={"state": "cancelled", "error": None})
        return old.model_copy(update={"state": "cancelling"}) if old.state == "running" else None

    after = change_state(job, mark)
    if after.state == "cancelling":
        again = before.state == "cancelling"
        signal_group(after, signal.SIGKILL if again else signal.SIGTERM)
    return after


def signal_group(state: State, number: signal.Signals) -> None:
    """Send a signal to a job's process group, if it runs on this machine."""
    if state.pid is None or state.host != socket.gethostname() or not _is_alive(state):
        return
    try:
        if os.getpgid(state.pid) == state.pid:
            os.killpg(state.pid, number)
        else:
            os.kill(state.pid, number)
    except ProcessLookupError:
        return  # it ended meanwhile


def append_event(job: Job, event: dict[str, Any]) -> None:
    """Append one event with its time; a torn line before it is closed first."""
    line = canonical_json({"time": round(time.time(), 3)} | event) + "\n"
    with job.file("events.jsonl").open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                line = "\n" + line
        stream.write(line.encode())


def events(job: Job, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events from a byte offset on, and the offset to go on from.

    A last line still being written is left for the next call; one torn by a kill is
    passed over.
    """
    try:
        with job.file("events.jsonl").open("rb") as stream:
            stream.seek(offset)
            data = stream.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    found = []
    for line in whole.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found, offset + len(whole)


def result_of(job: Job) -> dict[str, Any] | None:
    """What a finished job made, or None."""
    try:
        value = json.loads(job.file("result.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
