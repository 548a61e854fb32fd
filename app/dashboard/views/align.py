"""Align: train a model with its safety neurons frozen, watch it, and compare before and after."""

from typing import Any

import streamlit as st

from app.dashboard import alignments, data
from app.dashboard.components.align_form import align_form
from app.dashboard.components.before_after import before_and_after
from app.dashboard.components.choose import choose_one
from app.dashboard.components.downloads import as_json, file_button
from app.dashboard.components.gate import admit
from app.dashboard.components.job import asked_job, job_panel
from app.dashboard.components.text import failure, heading, plain
from app.jobs.events import result_of
from app.jobs.folder import Job, state_of
from toolkit.errors import SafeNeuronError
from toolkit.models.sources import CARD


def _label(job: Job) -> str:
    asked = job.request
    steps = (
        f"{asked.get('epochs'):g} passes" if asked.get("epochs") else f"{asked.get('steps')} steps"
    )
    several = f" · {asked.get('rounds')} rounds" if job.verb == "rounds" else ""
    return f"{data.job_label(job)} · {asked.get('recipe')} · {steps}{several}"


def _facts(result: dict[str, Any]) -> list[str]:
    """The figures of a run in words; its paths are told elsewhere."""
    return [
        f"{name.replace('_', ' ')}: {value:,}" if isinstance(value, int) else f"{name}: {value}"
        for name, value in result.items()
        if not isinstance(value, dict) and name not in {"model", "mask"}
    ]


def _rounds(job: Job) -> None:
    """The rounds so far, a row a model."""
    try:
        outcome = alignments.rounds_of(job)
    except SafeNeuronError as error:
        failure(error)
        return
    if outcome is not None:
        st.subheader("Rounds")
        st.dataframe(outcome.table(), hide_index=True)
        st.caption(
            "Found: neurons of the model before the round; new: of those, in no round before; "
            "frozen: all found so far. SETTING_k of SETTING_n: harmful prompts neither refused nor "
            "degenerate under that attack."
        )


def _take_away(job: Job) -> None:
    """What was made, as files, and where to go on with it."""
    after = alignments.pair_of(job).after
    with st.container(horizontal=True, vertical_alignment="center"):
        st.page_link(
            "views/prune_lab.py",
            label="Chat with the result",
            icon=":material/forum:",
            query_params={"model": after},
        )
        card = job.folder / CARD
        if card.is_file():
            file_button(
                CARD,
                card.read_bytes,
                "application/json",
                label="Card as JSON",
                help="Settings, hashes of the data, versions and figures.",
            )
        result = {"request": job.request, "result": result_of(job)}
        file_button(
            f"{job.id}.json",
            lambda: as_json(result),
            "application/json",
            label="Result as JSON",
        )


admit()
heading(
    "Align",
    "Preference optimisation (DPO) with the safety neurons frozen, so that the model must learn to "
    "refuse with others; then the same attack again.",
)
if "mask" in st.query_params and "run" not in st.query_params:
    st.session_state["align-open"] = True  # one came with a mask, to start from
jobs = {job.id: job for job in alignments.alignments()}
asked_job()  # says so when the address names none
if jobs:
    labels = {name: _label(job) for name, job in jobs.items()}
    job = jobs[choose_one("run", "Run", list(jobs), lambda name: labels[name])]
    with st.container(border=True):
        job_panel(job)
    _rounds(job)
    if state_of(job).state == "done":
        st.caption(plain(" · ".join(_facts(result_of(job) or {}))))
        _take_away(job)
        before_and_after(job)
else:
    st.info(
        "No alignment yet: start one below. It needs a model and a mask, which the Safety map "
        "makes, or `safeneuron demo` in a terminal.",
        icon=":material/explore:",
    )
align_form(expanded=not jobs or st.session_state.get("align-open", False))
