"""A job on a page: state, progress, curves, cancel. Everything is read from its folder."""

from collections.abc import Mapping
from typing import Literal

import plotly.graph_objects as go
import streamlit as st

from analysis.figures.training import held_out_figures, training_figures
from analysis.requests import Request
from app.dashboard.components.chart import chart
from app.dashboard.components.text import failure, plain
from app.dashboard.inside import require_inside
from app.jobs.events import events
from app.jobs.folder import ALIVE, Job, Phase, cancel, read_job, state_of
from app.jobs.progress import held_out_looks, how_far, training_steps
from app.jobs.queue import enqueue, launch
from app.jobs.verbs import Verb
from toolkit.errors import SafeNeuronError

Color = Literal["gray", "blue", "orange", "red", "green"]
BADGES: dict[Phase, tuple[Color, str]] = {
    "queued": ("gray", ":material/hourglass_empty:"),
    "running": ("blue", ":material/play_arrow:"),
    "cancelling": ("orange", ":material/hourglass_bottom:"),
    "cancelled": ("gray", ":material/cancel:"),
    "failed": ("red", ":material/error:"),
    "lost": ("orange", ":material/link_off:"),
    "done": ("green", ":material/check:"),
}
MEANINGS: dict[Phase, str] = {
    "queued": "waits for a worker: one job runs at a time",
    "cancelling": "saves and stops",
    "cancelled": "stopped; it can go on from where it saved",
    "lost": "its process is gone; it can go on from where it saved",
}
POLL = 1.5  # seconds
CURVE = 300  # pixels, three of which stand beside each other


def launch_from_page(verb: Verb, request: Request) -> Job | None:
    """Create and enqueue a job, and put it into the address; None after showing why not."""
    try:
        require_inside(request)
        job = launch(verb, request)
    except SafeNeuronError as error:
        failure(error)
        return None
    st.query_params["run"] = job.id
    return job


def asked_job() -> Job | None:
    """The job that the address names, if there is one."""
    name = st.query_params.get("run")
    if name is None:
        return None
    try:
        return read_job(name)
    except SafeNeuronError as error:
        failure(error)
        return None


def shown_on_top() -> None:
    """Run the page anew for a job that was started below, and say where it is shown."""
    st.session_state["started-below"] = True
    st.rerun()


def job_panel(job: Job) -> None:
    """Show a job, again every moment while it is unfinished."""
    if st.session_state.pop("started-below", False):
        st.toast("Started: it is shown at the top of this page.", icon=":material/arrow_upward:")
    state = state_of(job).state
    st.session_state[f"shown-{job.id}"] = state
    moving = state == "queued" or state in ALIVE
    st.fragment(_panel, run_every=POLL if moving else None)(job)


def _panel(job: Job) -> None:
    state = state_of(job)
    if st.session_state.get(f"shown-{job.id}") != state.state:
        # The rest of the page depends on it, and polling ends with the job.
        st.rerun(scope="app")
    found, _ = events(job)
    color, icon = BADGES[state.state]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(state.state, color=color, icon=icon)
        st.caption(" · ".join(filter(None, [plain(job.id), MEANINGS.get(state.state, "")])))
        _buttons(job, state.state)
    if state.error:
        st.error(plain(state.error), icon=":material/error:")
    far = how_far(found)
    if far is not None and state.state != "done":
        st.progress(far.share, text=plain(str(far)))
    steps = training_steps(found)
    if len(steps):
        last = steps.iloc[-1]
        _curves(
            training_figures(steps),
            f"over {len(steps)} training steps; the last loss is {last['loss']:.3g}",
            f"curves-{job.id}",
        )
        st.caption(
            "Loss: of DPO and the small SFT part together. Reward: beta times the log-ratio to the "
            "untrained model, for the chosen and the rejected answer; margin is their difference. "
            "Preferred: pairs whose chosen answer has the higher reward."
        )
    looks = held_out_looks(found)
    if len(looks):
        last = looks.iloc[-1]
        _curves(
            held_out_figures(looks),
            f"of what is held out, over {len(looks)} looks; at step {last['step']:.0f} the margin "
            f"is {last['margin']:.3g}",
            f"held-out-{job.id}",
        )
        st.caption(
            "On pairs and prompts that are not trained on, with nothing removed. Margin: as above, "
            "against the model that the run began with; divergence from it, nats a token."
        )


def _curves(figures: Mapping[str, go.Figure], of: str, key: str) -> None:
    """Figures beside each other, or below where there is no room for them and their legends."""
    with st.container(horizontal=True):
        for name, figure in figures.items():
            with st.container(width=CURVE):
                chart(figure, f"Curve of {name} {of}", key=f"{key}-{name}")


def _buttons(job: Job, state: Phase) -> None:
    if state in {"queued", "running", "cancelling"}:
        label = "Kill" if state == "cancelling" else "Cancel"
        if st.button(label, key=f"cancel-{job.id}-{label}", icon=":material/stop:"):
            cancel(job)
            st.rerun(scope="app")
    elif state in {"cancelled", "failed", "lost"} and st.button(
        "Go on", key=f"resume-{job.id}", icon=":material/replay:"
    ):
        try:
            enqueue(job)
        except SafeNeuronError as error:
            failure(error)
            return
        st.rerun(scope="app")
