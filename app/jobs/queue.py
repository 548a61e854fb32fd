"""The queue: jobs wait in huey, in a SQLite file or by URL in Redis or Postgres.

The job's folder is the truth and the queue only carries its id; what the queue loses, the
worker finds again in the folders.
"""

import json
import sqlite3
from functools import lru_cache
from importlib import import_module
from typing import Any

from huey import PostgresHuey, RedisHuey, SqliteHuey
from huey.exceptions import HueyException
from huey.registry import Message
from huey.serializer import Serializer

from analysis.requests import Request
from app.jobs.folder import ALIVE, Job, create, requeue, state_of
from app.jobs.verbs import Verb
from app.settings import read_settings
from toolkit.errors import SafeNeuronError
from toolkit.files import sha256_text
from toolkit.home import home


class JsonSerializer(Serializer):  # type: ignore[misc]
    """Tasks as JSON: with huey's pickles, whoever can write to the queue could run code."""

    def _serialize(self, data: Any) -> bytes:
        return json.dumps(list(data)).encode()

    def _deserialize(self, data: bytes) -> Any:
        return Message(*json.loads(data))


def _errors() -> tuple[type[Exception], ...]:
    """What the queues' libraries raise when a queue cannot be reached."""
    found: list[type[Exception]] = [sqlite3.Error, OSError, ValueError, HueyException]
    for module, name in (("redis.exceptions", "RedisError"), ("psycopg", "Error")):
        try:
            found.append(getattr(import_module(module), name))
        except ImportError:
            continue  # that queue cannot be in use
    return tuple(found)


QUEUE_ERRORS = _errors()


def queue_url() -> str:
    """Where jobs wait."""
    return read_settings().queue or f"sqlite:///{home().absolute() / 'queue.db'}"


@lru_cache(maxsize=8)
def _queue(url: str, name: str) -> tuple[Any, Any]:
    kind = url.partition(":")[0]
    shared = {"results": False, "serializer": JsonSerializer()}
    if kind == "sqlite":
        huey = SqliteHuey(name, filename=url.removeprefix("sqlite:///"), **shared)
    elif kind in {"redis", "rediss"}:
        huey = RedisHuey(name, url=url, **shared)
    else:
        huey = PostgresHuey(name, dsn=url, **shared)
    return huey, huey.task()(run_job)


def queue() -> tuple[Any, Any]:
    """The huey queue of this home, made when it is missing, and what puts a job's id into it.

    Raises:
        SafeNeuronError: it cannot be reached.
    """
    url = queue_url()
    # Several homes may share a server.
    name = f"safeneuron-{sha256_text(str(home().absolute()))[:8]}"
    try:
        home().mkdir(parents=True, exist_ok=True)
        return _queue(url, name)
    except QUEUE_ERRORS as error:
        raise unreachable(error) from error


def unreachable(error: Exception) -> SafeNeuronError:
    """The one line for a queue that does not answer; its password, if any, is left out."""
    _queue.cache_clear()  # connect anew next time
    place = queue_url()
    scheme, _, rest = place.partition("://")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return SafeNeuronError(
        f"the queue {scheme}://{rest.rpartition('@')[2]} cannot be used ({reason}); jobs are kept "
        "and wait until it can"
    )


def run_job(name: str) -> None:
    """The queue's one task: run the job of that id; only a worker comes here."""
    from app.jobs.worker import run

    run(name)


def waiting() -> set[str]:
    """The ids of the jobs that wait in the queue.

    Raises:
        SafeNeuronError: it cannot be reached.
    """
    try:
        return {str(task.args[0]) for task in queue()[0].pending() if task.args}
    except QUEUE_ERRORS as error:
        raise unreachable(error) from error


def enqueue(job: Job) -> None:
    """Let the next free worker run a job; one that was stopped goes on.

    Raises:
        SafeNeuronError: the queue cannot be reached; the job waits until it can.
    """
    requeue(job)
    _, put = queue()
    try:
        put(job.id)
    except QUEUE_ERRORS as error:
        raise unreachable(error) from error


def launch(verb: Verb, request: Request) -> Job:
    """Create a job and enqueue it, unless it waits or runs already.

    Raises:
        SafeNeuronError: it cannot be written, or the queue cannot be reached.
    """
    job = create(verb, request)
    if state_of(job).state not in ALIVE:
        enqueue(job)
    return job
