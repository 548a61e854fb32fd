"""Runs: every job, how it stands, and its log."""

import json

import pandas as pd
import streamlit as st

from app.dashboard import data
from app.dashboard.components.choose import choose_one
from app.dashboard.components.gate import admit
from app.dashboard.components.job import job_panel
from app.dashboard.components.text import heading, plain
from app.jobs.events import events
from app.jobs.folder import ALIVE, Job, list_jobs, state_of
from app.jobs.progress import how_far

PAGES = {
    "identify": ("pages/safety_map.py", "Safety map"),
    "attack": ("pages/attack.py", "Attack"),
    "align": ("pages/align.py", "Align"),
}
LOG_BYTES = 8000
POLL = 3.0  # seconds


def _table(jobs: list[Job]) -> None:
    rows = []
    for job in jobs:
        state = state_of(job)
        far = how_far(events(job)[0])
        rows.append(
            {
                "started": job.created,
                "job": job.verb,
                "model": data.job_model(job),
                "state": state.state,
                "progress": 1.0 if state.state == "done" else far.share if far else 0.0,
                "stage": "" if far is None or state.state == "done" else str(far),
                "error": state.error or "",
            }
        )
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        column_config={
            "started": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
            "progress": st.column_config.ProgressColumn(format="percent", width="small"),
        },
    )


def _log(job: Job) -> str:
    try:
        with job.file("log.txt").open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - LOG_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


admit()
heading("Runs", "Jobs go on when this page is closed. One runs at a time; the others wait.")
jobs = list_jobs()
if not jobs:
    st.info(
        "No job yet: start one from the forms on the other pages. Commands such as "
        "`safeneuron demo` do their work in the terminal and leave none here.",
        icon=":material/explore:",
    )
else:
    moving = any(state_of(job).state in {"queued", *ALIVE} for job in jobs)
    st.fragment(_table, run_every=POLL if moving else None)(jobs[:100])
    by_id = {job.id: job for job in jobs}
    labels = {name: f"{data.job_label(job)} · {name[-6:]}" for name, job in by_id.items()}
    chosen = by_id[choose_one("run", "Run", list(by_id), lambda name: labels[name])]
    with st.container(border=True):
        job_panel(chosen)
    if chosen.verb in PAGES:  # rounds have no page of their own
        page, title = PAGES[chosen.verb]
        st.page_link(
            page,
            label=f"Open on {title}",
            icon=":material/arrow_forward:",
            query_params={"run": chosen.id},
        )
    left, right = st.columns(2)
    with left:
        st.subheader("Log")
        st.code(_log(chosen) or "nothing yet", language=None, height=280, wrap_lines=True)
    with right:
        st.subheader("Request")
        st.code(json.dumps(chosen.request, indent=1), language="json", height=280)
    st.caption(plain(str(chosen.folder)))
