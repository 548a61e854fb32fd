"""``safeneuron jobs``: what the Jobs page does, at the command line."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from app import terminal
from app.commands.options import Json
from app.jobs.events import events, log_of, result_of
from app.jobs.folder import (
    ALIVE,
    ID,
    LARGEST,
    WATCH,
    Job,
    broken_jobs,
    cancel,
    list_jobs,
    names,
    read_job,
    settle,
    state_of,
)
from app.jobs.progress import how_far
from app.jobs.queue import enqueue, launch
from app.jobs.verbs import REQUESTS, parse_verb
from app.jobs.worker import workers
from toolkit.errors import SafeNeuronError

Names = Annotated[list[str], typer.Argument(help="Ids, or ends of them that are unique.")]
Name = Annotated[str, typer.Argument(help="Its id, or a unique end of it.")]
POLL = 1.0  # seconds

jobs = typer.Typer(help="List, follow, cancel and go on with jobs.", rich_markup_mode=None)


def find_job(name: str) -> Job:
    """The job of an id, or of an id's end that is unique.

    Raises:
        SafeNeuronError: there is none, or there are several.
    """
    if ID.fullmatch(name):
        return read_job(name)
    found = [known for known in names() if name and known.endswith(name)]
    if len(found) > 1:
        raise SafeNeuronError(f"{name[:40]!r} ends {len(found)} ids; give more of it")
    if not found:
        raise SafeNeuronError(f"no job {name[:60]!r}; 'safeneuron jobs' lists them")
    return read_job(found[0])


def describe(job: Job) -> dict[str, Any]:
    """A job as one flat record."""
    state = state_of(job)
    far = how_far(events(job)[0]) if state.state in {*ALIVE, "lost", "cancelled"} else None
    return {
        "id": job.id,
        "state": state.state,
        "verb": job.verb,
        "model": str(job.request.get("model", "")),
        "progress": str(far) if far is not None else "",
        "created": job.created.isoformat(timespec="seconds"),
        "error": state.error or "",
    }


def settle_all() -> list[Job]:
    """Every job, newest first, after what was lost is written down as lost."""
    found = list_jobs()
    before = [job for job in found if settle(job).state in ALIVE]
    # A silent job of another machine is looked at for a moment before it is called lost.
    end = time.monotonic() + WATCH + POLL
    while any(_silent(job) for job in before) and time.monotonic() < end:
        time.sleep(POLL)
        before = [job for job in before if settle(job).state in ALIVE]
    return found


def _silent(job: Job) -> bool:
    state = state_of(job)
    return state.state in ALIVE and state.silent()


@jobs.callback(invoke_without_command=True)
def jobs_default(context: typer.Context, as_json: Json = False) -> None:
    """List jobs, newest first."""
    if context.invoked_subcommand is None:
        jobs_list(None, as_json)


@jobs.command("ls")
def jobs_list(
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    rows = [row for row in map(describe, settle_all()) if state in (None, row["state"])]
    if as_json:
        terminal.print_json(rows)
        return
    for line in broken_jobs():
        terminal.note(f"passed over: {line}")
    if not rows:
        terminal.say("no jobs" if state is None else f"no jobs that are {state}")
        return
    shown = ("id", "state", "model", "progress", "error")
    cells = [[row[name] for name in shown] for row in rows]
    terminal.print_table("jobs", shown, cells)
    if any(row["state"] == "queued" for row in rows) and not workers():
        terminal.note("no worker runs: 'safeneuron worker' or 'safeneuron serve' starts one")


@jobs.command("show")
def jobs_show(name: Name, as_json: Json = False) -> None:
    """Show one job: state, progress, request and result."""
    job = find_job(name)
    settle(job)
    told = describe(job) | {"folder": str(job.folder)}
    if as_json:
        terminal.print_json(told | {"request": job.request, "result": result_of(job)})
        return
    for key, value in told.items():
        if value:
            terminal.say(f"{key}: {value}")
    terminal.say("request: " + json.dumps(job.request))
    if (result := result_of(job)) is not None:
        terminal.say("result: " + json.dumps(result))


@jobs.command("log")
def jobs_log(
    name: Name,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the job ends.")] = False,
    size: Annotated[int, typer.Option(help="Bytes from its end.", min=1)] = 8000,
) -> None:
    """Print a job's log."""
    job = find_job(name)
    terminal.say(log_of(job, size).rstrip("\n"))
    path = job.file("log.txt")
    offset = path.stat().st_size if path.exists() else 0
    while follow:
        over = state_of(job).state not in {"queued", *ALIVE}
        if path.exists():
            with path.open("rb") as stream:
                stream.seek(offset)
                text = stream.read()
            offset += len(text)
            if text:
                terminal.say(text.decode("utf-8", "replace").rstrip("\n"))
        if over:
            return
        time.sleep(POLL)


@jobs.command("cancel")
def jobs_cancel(wanted: Names, as_json: Json = False) -> None:
    """Stop jobs: they save first. Cancelled again while it is stopping, a job is killed."""
    found = [find_job(name) for name in wanted]
    _report({job.id: cancel(job).state for job in found}, as_json)


@jobs.command("retry")
def jobs_retry(wanted: Names, as_json: Json = False) -> None:
    """Let cancelled, failed and lost jobs go on from where they saved."""
    found = [find_job(name) for name in wanted]
    for job in found:
        state = settle(job).state
        if state not in {"cancelled", "failed", "lost", "queued"}:
            raise SafeNeuronError(f"{job.id} is {state}; only a job that was stopped goes on")
    for job in found:
        enqueue(job)
    _report({job.id: state_of(job).state for job in found}, as_json)


@jobs.command("add")
def jobs_add(
    verb: Annotated[str, typer.Argument(help="One of " + ", ".join(REQUESTS) + ".")],
    request: Annotated[Path, typer.Argument(help="Its request as JSON, as 'jobs show' gives it.")],
    as_json: Json = False,
) -> None:
    """Put a job into the queue, as a page's button does."""
    from analysis.requests import parse_request

    kind = REQUESTS[parse_verb(verb)]
    try:
        if request.stat().st_size > LARGEST:
            raise SafeNeuronError(f"{request} is too large for a request")
        values = json.loads(request.read_text("utf-8"))
    except OSError as error:
        raise SafeNeuronError(f"cannot read {request}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SafeNeuronError(f"{request} is not JSON") from error
    job = launch(parse_verb(verb), parse_request(kind, values))
    _report({job.id: state_of(job).state}, as_json)


def _report(states: dict[str, str], as_json: bool) -> None:
    if as_json:
        terminal.print_json([{"id": name, "state": state} for name, state in states.items()])
        return
    for name, state in states.items():
        terminal.say(f"{name}: {state}")
    if "queued" in states.values() and not workers():
        terminal.note("no worker runs: 'safeneuron worker' or 'safeneuron serve' starts one")
