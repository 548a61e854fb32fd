"""Home: what is known of each model's safety, what is running, and how to begin."""

import pandas as pd
import streamlit as st

from analysis.requests import IdentifyRequest
from analysis.robustness import AttackResult, finding, headline
from analysis.store import Entry
from app.dashboard import data
from app.dashboard.components.choose import from_choices
from app.dashboard.components.downloads import downloads
from app.dashboard.components.gate import admit
from app.dashboard.components.identify_form import start_identifying
from app.dashboard.components.job import BADGES, asked_job, job_panel
from app.dashboard.components.terms import terms
from app.dashboard.components.text import failure, plain
from app.jobs.events import events
from app.jobs.folder import ALIVE, Job, list_jobs, state_of
from app.jobs.progress import how_far
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

MODELS = 3  # headlines shown in full
POLL = 3.0  # seconds
SETTINGS = {"ORI": "Whole model", "FULL": "Without them", "RANDOM": "Without as many random"}


def _headline(study: Entry) -> None:
    """One model: how many safety neurons, where, and what attacks say of them."""
    facts = study.summary
    neurons = data.mask_of(study).neuron_set()
    st.markdown(f"#### {plain(data.model_label(facts['model']))}")
    st.caption(plain(data.study_label(study)))
    result = _attack(study)
    shares = {} if result is None else _shares(result)
    columns = st.columns(2 + len(SETTINGS) if shares else 2)
    columns[0].metric(
        "Safety neurons", f"{len(neurons):,}", f"{neurons.fraction:.2%} of all", "off", border=True
    )
    layer, share, half = _where(neurons)
    columns[1].metric(
        "Densest layer",
        f"{layer} of {len(neurons.widths)}",
        f"{share:.1%} of it; half of them by layer {half}",
        "off",
        border=True,
    )
    for place, (name, label) in zip(columns[2:], SETTINGS.items(), strict=False):
        if name in shares:
            value, interval = shares[name]
            help_text = "Harmful prompts neither refused nor degenerate, Wilson 95 %."
            place.metric(label, value, interval, "off", border=True, help=help_text)
    told = finding(result) if result is not None else None
    if told is not None:
        st.caption(plain(told.sentence))
    elif not shares:
        st.caption("Not attacked yet: the Attack page tells what is left without these neurons.")
    asked = {"study": study.key}
    with st.container(horizontal=True):
        for page, title, icon in (
            ("safety_map", "Safety map", "grid_on"),
            ("neuron", "Strongest neuron", "adjust"),
        ):
            st.page_link(
                f"pages/{page}.py", label=title, icon=f":material/{icon}:", query_params=asked
            )
        if result is None:
            mask = {"mask": str(study.file("mask.json")), "model": str(facts["model"])}
            st.page_link(
                "pages/attack.py", label="Attack it", icon=":material/bolt:", query_params=mask
            )


def _where(neurons: NeuronSet) -> tuple[int, float, int]:
    """The layer with the largest share, that share, and the layer by which half are counted."""
    counts = neurons.counts()
    shares = [n / width if width else 0.0 for n, width in zip(counts, neurons.widths, strict=True)]
    densest = max(range(len(shares)), key=shares.__getitem__)
    half = int((counts.cumsum() * 2 >= counts.sum()).argmax())
    return densest, shares[densest], half


def _attack(study: Entry) -> AttackResult | None:
    """The newest attack on the study's model, with its mask where there is one."""
    found = data.attacks_on(str(study.summary.get("fingerprint")))
    own = data.mask_of(study).sha256
    found.sort(key=lambda entry: entry.summary["mask"] != own)
    for entry in found:
        try:
            return data.attack_result(entry.file("attack.json"))
        except SafeNeuronError:
            continue
    return None


def _shares(result: AttackResult) -> dict[str, tuple[str, str]]:
    """Setting -> attack success in per cent, and k/n with its interval."""
    table = headline(result)
    harmful = table[table["side"] == "harmful"]
    return {
        row["setting"]: (
            f"{row['success']:.1%}",
            f"{row['k_success']:.0f}/{row['n']} [{row['success_low']:.1%}, "
            f"{row['success_high']:.1%}]",
        )
        for row in harmful.to_dict("records")
        if row["setting"] in SETTINGS
    }


def _running(jobs: list[Job]) -> None:
    """What is queued or running, and how far it is."""
    moving = [job for job in jobs if state_of(job).state in {"queued", *ALIVE}]
    if not moving:
        st.caption("Nothing is running.")
    for job in moving[:6]:
        state = state_of(job).state
        color, icon = BADGES[state]
        far = how_far(events(job)[0])
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.badge(state, color=color, icon=icon)
                st.markdown(plain(f"{job.verb} of {data.job_model(job)}"))
            if far is not None:
                st.progress(far.share, text=plain(str(far)))


def _studies(found: list[Entry]) -> None:
    st.subheader("Studies")
    table = pd.DataFrame(
        {
            "model": data.model_label(entry.summary["model"]),
            "method": entry.summary["method"],
            "position": entry.summary["position"],
            "neurons": entry.summary["count"],
            "share": entry.summary["fraction"],
            "prompts": f"{entry.summary['harmful']} / {entry.summary['harmless']}",
            "made": entry.created,
            "key": entry.key[:12],
        }
        for entry in found
    )
    st.dataframe(
        table,
        hide_index=True,
        column_config={
            "share": st.column_config.NumberColumn(format="percent"),
            "made": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        },
    )
    downloads("studies", lambda: table, key="studies")


def _start(first: bool) -> None:
    st.subheader("Start a study")
    st.caption(
        "Its safety neurons are found from harmful and harmless prompts, the top 1 % by ES or SAS; "
        "the Safety map has every other option."
    )
    with st.form("start", border=True):
        model = from_choices("Model", data.model_choices(), "model", new=True)
        if st.form_submit_button(
            "Start a study", type="primary" if first else "secondary", icon=":material/play_arrow:"
        ):
            usual = IdentifyRequest.model_fields
            names = ("harmful", "harmless", "position")
            values = {name: usual[name].default for name in names}
            start_identifying({"model": model or "", "top": 0.01, **values})


def _headlines(found: list[Entry]) -> None:
    newest: dict[str, Entry] = {}
    for entry in found:
        newest.setdefault(str(entry.summary.get("fingerprint")), entry)
    for entry in list(newest.values())[:MODELS]:
        with st.container(border=True):
            try:
                _headline(entry)
            except SafeNeuronError as error:
                failure(error)


admit()
st.title("SafeNeuron")
st.caption(
    "Find the MLP neurons that a model's refusals hang on, see what is left without them, and "
    "train the model to stand without them."
)
found = data.studies()
job = asked_job()
if job is not None:
    with st.container(border=True):
        job_panel(job)
if found:
    terms("Neuron", "ES", "SAS", "Attack success", "Random control")
    _headlines(found)
else:
    st.info(
        "No study yet. Start one below on a model of yours or an embedded one, or run "
        "`safeneuron demo` in a terminal for the whole method on the embedded model.",
        icon=":material/explore:",
    )
left, right = st.columns([3, 2], gap="large")
with left:
    _start(first=not found)
with right:
    st.subheader("Running now")
    jobs = list_jobs()
    busy = any(state_of(one).state in {"queued", *ALIVE} for one in jobs)
    st.fragment(_running, run_every=POLL if busy else None)(jobs)
if found:
    _studies(found)
