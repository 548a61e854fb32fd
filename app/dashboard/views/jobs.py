"""Jobs: the queue, how each job stands, its log, and what can be done about it."""

import json
from typing import Any

import pandas as pd
import streamlit as st

from app.dashboard import data, lab
from app.dashboard.components.choose import choose_one
from app.dashboard.components.downloads import as_json, file_button
from app.dashboard.components.gate import admit
from app.dashboard.components.job import BADGES, MEANINGS, job_panel
from app.dashboard.components.text import failure, heading, plain
from app.jobs.events import as_seen, events, log_of, result_of
from app.jobs.folder import ALIVE, UNFINISHED, Job, Phase, broken_jobs, list_jobs, settle, state_of
from app.jobs.progress import how_far
from app.jobs.verbs import Verb
from app.jobs.worker import workers
from toolkit.errors import SafeNeuronError

PAGES: dict[Verb, tuple[str, str]] = {
    "identify": ("views/safety_map.py", "Safety map"),
    "attack": ("views/attack.py", "Attack"),
    "align": ("views/align.py", "Align"),
    "rounds": ("views/align.py", "Align"),
    "chat": ("views/prune_lab.py", "Prune lab"),
    "neuron": ("views/neuron.py", "Neuron"),
}
SHOWN = ("all", "unfinished", "stopped", "done")
MOST = 100  # jobs in the table
POLL = 2.0  # seconds
HEIGHT = 320  # pixels of the log and of the request


def _wanted(state: Phase, shown: str) -> bool:
    if shown == "unfinished":
        return state in UNFINISHED
    if shown == "stopped":
        return state in {"cancelled", "failed", "lost"}
    return shown == "all" or state == shown


def _row(job: Job) -> dict[str, Any]:
    state = settle(job)
    # Of a job that is done nothing is left to be read.
    far = None if state.state in {"done", "queued"} else how_far(events(job)[0])
    # How far one that failed had come is said by its stage; a bar would look like success.
    share = None if state.state == "failed" else far.share if far else 0.0
    return {
        "started": job.created,
        "state": state.state,
        "progress": 1.0 if state.state == "done" else share,
        "job": job.verb,
        "model": data.job_model(job),
        "stage": "" if far is None else str(far),
        "id": job.id,
        "error": state.error or "",
    }


def _table(jobs: list[Job]) -> None:
    rows = [_row(job) for job in jobs]
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        column_config={
            "started": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm", width=130),
            "job": st.column_config.TextColumn(width=70),
            "state": st.column_config.TextColumn(
                width=80,
                help="; ".join(f"{name}: {MEANINGS[name]}" for name in BADGES if name in MEANINGS),
            ),
            "progress": st.column_config.ProgressColumn(format="percent", width=100),
        },
    )
    before = st.session_state.get("jobs-states")
    now = {row["id"]: row["state"] for row in rows}
    st.session_state["jobs-states"] = now
    if before is not None and before.keys() == now.keys() and before != now:
        st.rerun(scope="app")  # what can be done about a job depends on its state


def _shown(shown: str) -> list[Job]:
    found = [job for job in list_jobs() if _wanted(state_of(job).state, shown)]
    if len(found) > MOST:
        st.caption(f"The newest {MOST} of {len(found)}; `safeneuron jobs` lists all.")
    return found[:MOST]


def _filter() -> str:
    asked = st.query_params.get("state")
    chosen = st.segmented_control(
        "Show",
        SHOWN,
        default=asked if asked in SHOWN else "all",
        key="jobs-shown",
        help="Unfinished: queued, running, cancelling or lost. Stopped: cancelled, failed or lost; "
        "they go on from where they saved.",
    )
    shown = str(chosen or "all")
    st.query_params["state"] = shown
    return shown


def _log(name: str) -> None:
    """The log of a job, as it grows."""
    job = next((job for job in list_jobs() if job.id == name), None)
    text = "" if job is None else as_seen(log_of(job))
    st.code(text or "nothing yet", language=None, height=HEIGHT, wrap_lines=True)


def _address(job: Job) -> dict[str, str]:
    """The query string that opens a job on its page."""
    if job.verb == "chat":
        return lab.address_of(job)
    told = {"run": job.id}
    if job.verb == "neuron":
        told |= {name: str(job.request[name]) for name in ("layer", "neuron")}
        study = data.study_measured(job)
        told |= {} if study is None else {"study": study.key}
    return told


def _details(job: Job) -> None:
    state = state_of(job).state
    with st.container(border=True):
        job_panel(job)
    with st.container(horizontal=True):
        page, title = PAGES[job.verb]
        st.page_link(
            page,
            label=f"Open on {title}",
            icon=":material/arrow_forward:",
            query_params=_address(job),
        )
    left, right = st.columns(2)
    with left:
        st.subheader("Log")
        st.fragment(_log, run_every=POLL if state in ALIVE else None)(job.id)
        file_button(
            f"{job.id}.txt", lambda: log_of(job, 1 << 24).encode(), "text/plain", label="Log"
        )
    with right:
        st.subheader("Request")
        st.code(json.dumps(job.request, indent=1), language="json", height=HEIGHT)
        file_button(
            f"{job.id}.json",
            lambda: as_json(job.request),
            "application/json",
            label="Request",
            help="'safeneuron jobs add VERB FILE' puts it into the queue again.",
        )
    result = result_of(job)
    if result is not None:
        st.subheader("Result")
        st.code(json.dumps(result, indent=1, default=str), language="json")
    st.caption(plain(str(job.folder)))


admit()
heading(
    "Jobs",
    "They go on when this page is closed. One heavy job runs on each device; the others wait.",
)
if not workers():
    st.warning(
        "No worker runs, so jobs wait: `safeneuron worker` or `safeneuron serve` starts one.",
        icon=":material/hourglass_empty:",
    )
for line in broken_jobs():
    failure(SafeNeuronError(f"passed over: {line}"))
if not list_jobs():
    st.info(
        "No job yet: start one from the forms on the other pages. Commands such as "
        "`safeneuron demo` do their work in the terminal and leave none here.",
        icon=":material/explore:",
    )
else:
    jobs = _shown(_filter())
    if not jobs:
        st.info("No job is in such a state.")
    else:
        moving = any(state_of(job).state in {"queued", *ALIVE} for job in jobs)
        st.fragment(_table, run_every=POLL if moving else None)(jobs)
        by_id = {job.id: job for job in jobs}
        labels = {name: f"{data.job_label(job)} · {name[-6:]}" for name, job in by_id.items()}
        _details(by_id[choose_one("run", "Job", list(by_id), lambda name: labels[name])])
