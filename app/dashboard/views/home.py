"""Home: what is known of each model's safety, what is running, and how to begin."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import streamlit as st

from analysis.figures import layer_fraction_figure, success_figure
from analysis.requests import IdentifyRequest
from analysis.robustness import AttackResult, finding, headline
from analysis.store import Entry
from app.dashboard import data
from app.dashboard.components.chart import chart
from app.dashboard.components.choose import choose_model
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
HELP = (
    "Its safety neurons are found from harmful and harmless prompts, the top 1 % by ES or SAS; the "
    "Safety map has every other option."
)
RECENT = 5  # studies of a model among which one that was attacked is looked for
SETTINGS = {"ORI": "whole model", "FULL": "without", "RANDOM": "random ones"}
FACT: dict[str, Any] = {"delta_color": "off", "delta_arrow": "off", "border": True, "width": 180}


def _headline(study: Entry, result: AttackResult | None, before: bool) -> None:
    """One model: how many safety neurons, where, and what an attack says of them.

    Args:
        study: of the model.
        result: of an attack on it, if there is one.
        before: the attack was with the set found before training, not with the study's.
    """
    facts = study.summary
    neurons = data.mask_of(study).neuron_set()
    layer, share, half = _where(neurons)
    st.markdown(f"#### {plain(data.model_label(facts['model']))}")
    st.caption(
        plain(
            f"{facts['method']} at the {facts['position']} token, {facts['harmful']} against "
            f"{facts['harmless']}; {study.created:%Y-%m-%d %H:%M}"
        )
    )
    with st.container(horizontal=True):
        st.metric("Safety neurons", f"{len(neurons):,}", f"{neurons.fraction:.2%} of all", **FACT)
        st.metric(
            "Densest layer", f"{layer} of {len(neurons.widths)}", f"{share:.1%} of it", **FACT
        )
    first, second = st.columns(2)
    with first:
        st.markdown("**Where they are**")
        figure = layer_fraction_figure(neurons)
        figure.update_layout(height=190, margin={"t": 12, "b": 42, "r": 8})
        figure.update_xaxes(dtick=max(1, -(-len(neurons.widths) // 6)), tickangle=0)
        chart(
            figure,
            f"Bars: selected share of each layer; layer {layer} has most, {share:.1%}, and half of "
            f"all lie in layers 0 to {half}",
            key=f"layers-{study.key}",
        )
    with second:
        what = "the set found before training" if before else "them"
        st.markdown(f"**What is left without {what}**")
        told = finding(result) if result is not None else None
        if result is None:
            st.caption(
                "Not attacked with these neurons yet: the Attack page removes them and counts the "
                "refusals."
            )
        else:
            chart(
                success_figure(headline(result), SETTINGS),
                "Attack success with intervals: " + (told.sentence if told else "see Attack"),
                key=f"success-{study.key}",
            )
    if told is not None:
        attacked = "Attacked with the set found before training, not with these. " * before
        st.caption(plain(attacked + told.sentence))
    _links(study)


def _links(study: Entry) -> None:
    asked = {"study": study.key}
    mask = {"mask": str(study.file("mask.json")), "model": str(study.summary["model"])}
    with st.container(horizontal=True):
        for page, title, icon, query in (
            ("safety_map", "Safety map", "grid_on", asked),
            ("neuron", "Strongest neuron", "adjust", asked),
            ("attack", "Attack it", "bolt", mask),
        ):
            st.page_link(
                f"views/{page}.py", label=title, icon=f":material/{icon}:", query_params=query
            )


def _where(neurons: NeuronSet) -> tuple[int, float, int]:
    """The layer with the largest share, that share, and the layer by which half are counted."""
    counts = neurons.counts()
    shares = [n / width if width else 0.0 for n, width in zip(counts, neurons.widths, strict=True)]
    densest = max(range(len(shares)), key=shares.__getitem__)
    half = int((counts.cumsum() * 2 >= counts.sum()).argmax())
    return densest, shares[densest], half


def _attack(study: Entry) -> AttackResult | None:
    """The newest attack on the study's model with its own mask."""
    try:
        own = data.mask_of(study).sha256
    except SafeNeuronError:
        return None
    return next(
        _results(entry for entry in _attacks_on_model(study) if entry.summary["mask"] == own), None
    )


def _attack_from_before(study: Entry) -> AttackResult | None:
    """The newest attack on the study's model with a set found on what it was trained from.

    A mask of any other model fits only by force.
    """
    fingerprint = study.summary.get("fingerprint")
    found = _results(_attacks_on_model(study))
    return next((result for result in found if result.mask.fingerprint != fingerprint), None)


def _attacks_on_model(study: Entry) -> list[Entry]:
    return data.attacks_on(str(study.summary.get("fingerprint")))


def _results(entries: Iterable[Entry]) -> Iterator[AttackResult]:
    """What can be read of some attacks, one by one."""
    for entry in entries:
        try:
            yield data.attack_result(entry.file("attack.json"))
        except SafeNeuronError:
            continue


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
    with (
        st.form("start", border=True),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        model = choose_model(HELP)
        if st.form_submit_button(
            "Start a study", type="primary" if first else "secondary", icon=":material/play_arrow:"
        ):
            usual = IdentifyRequest.model_fields
            names = ("harmful", "harmless", "position")
            values = {name: usual[name].default for name in names}
            start_identifying({"model": model or "", "top": 0.01, **values})


def _headlines(found: list[Entry]) -> None:
    """The newest studies, one a model: one that was attacked goes before a newer one."""
    by_model: dict[str, list[Entry]] = {}
    for entry in found:
        by_model.setdefault(str(entry.summary.get("fingerprint")), []).append(entry)
    for entries in list(by_model.values())[:MODELS]:
        attacked = ((entry, _attack(entry)) for entry in entries[:RECENT])
        study, result = next((pair for pair in attacked if pair[1]), (entries[0], None))
        before = None if result else _attack_from_before(study)
        with st.container(border=True):
            try:
                _headline(study, result or before, before is not None)
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
if not found:
    st.info(
        "No study yet. Start one below on a model of yours or an embedded one, or run "
        "`safeneuron demo` in a terminal for the whole method on the embedded model.",
        icon=":material/explore:",
    )
left, right = st.columns([3, 2], gap="large", vertical_alignment="center")
with left:
    _start(first=not found)
with right:
    jobs = list_jobs()
    busy = any(state_of(one).state in {"queued", *ALIVE} for one in jobs)
    st.fragment(_running, run_every=POLL if busy else None)(jobs)
if found:
    _headlines(found)
    _studies(found)
    terms("Neuron", "ES", "SAS", "Attack success", "Random control")
