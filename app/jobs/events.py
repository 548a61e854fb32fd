"""What a job says: its events, its log, its result."""

import json
import os
import time
from pathlib import Path
from typing import Any

from app.jobs.folder import Job
from toolkit.files import canonical_json


def append_event(job: Job, event: dict[str, Any]) -> None:
    """Append one event of a job with its time."""
    append_line(job.file("events.jsonl"), event)


def append_line(path: Path, event: dict[str, Any]) -> None:
    """Append one event with its time; a torn line before it is closed first.

    ``clock`` runs on evenly when the time of day is set.
    """
    stamps = {"time": round(time.time(), 3), "clock": round(time.monotonic(), 3)}
    line = canonical_json(stamps | event) + "\n"
    with path.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                line = "\n" + line
        stream.write(line.encode())


def events(job: Job, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events of a job from a byte offset on, and the offset to go on from."""
    return read_lines(job.file("events.jsonl"), offset)


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events in a file from a byte offset on, and the offset to go on from.

    A last line still being written is left for the next call; one torn by a kill is
    passed over.
    """
    try:
        with path.open("rb") as stream:
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


def log_of(job: Job, size: int = 8000) -> str:
    """The last ``size`` bytes of a job's log."""
    try:
        with job.file("log.txt").open("rb") as stream:
            end = stream.seek(0, 2)
            stream.seek(max(0, end - size))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def as_seen(log: str) -> str:
    """A log as a terminal shows it: of a line that a progress bar drew again, the last drawing."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in log.split("\n"))
    return "\n".join(lines)


def result_of(job: Job) -> dict[str, Any] | None:
    """What a finished job made, or None."""
    try:
        value = json.loads(job.file("result.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
