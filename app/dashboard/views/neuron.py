"""Neuron: everything known of one, from the store; what is missing is measured by a job."""

import pandas as pd
import streamlit as st

from analysis.figures.neuron import distribution_figure
from analysis.kept_neuron import kept_measurement, measuring_request, standings
from analysis.mask_library import cards
from analysis.neuron import Effect, Measured, Standing
from analysis.store import Entry, Store
from app.dashboard import data
from app.dashboard.components.chart import chart
from app.dashboard.components.choose import choose_one
from app.dashboard.components.downloads import downloads
from app.dashboard.components.gate import admit
from app.dashboard.components.job import asked_job, job_panel, launch_from_page
from app.dashboard.components.place import place_fields, remember_place
from app.dashboard.components.terms import terms
from app.dashboard.components.text import failure, heading, nothing_yet, plain
from app.dashboard.components.tokens import show_tokens
from app.dashboard.components.working import working_buttons
from app.dashboard.tables import Table
from app.jobs.folder import Job
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile, read_mask
from toolkit.neurons import NeuronSet


def _standings(found: list[Standing]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "score": one.score,
            "value": one.value,
            "rank": f"{one.rank:,} of {one.of:,}",
            "percentile": one.percentile,
            "in its layer": f"{one.rank_in_layer:,} of {one.of_layer:,}",
            "p": "" if one.p is None else f"{one.p:.2g}",
        }
        for one in found
    )


def _memberships(mask: MaskFile, place: tuple[int, int]) -> pd.DataFrame:
    """The masks of this model, and whether the neuron is in each."""
    rows = []
    for card in cards():
        if card.fingerprint != mask.model.fingerprint or not card.count:
            continue
        try:
            stored = read_mask(card.path)
        except SafeNeuronError:
            continue  # gone meanwhile
        parts = [name for name in stored.parts if place in stored.part(name)]
        rows.append(
            {
                "member": place in stored.neuron_set(),
                "mask": data.mask_label(card),
                "chosen by": ", ".join(parts),
            }
        )
    return pd.DataFrame(rows)


def _measured(measured: Measured, study: Entry, place: str) -> None:
    st.subheader("What it fires on")
    sides = {side: found.values for side, found in measured.distributions.items()}
    means = {side: found.mean for side, found in measured.distributions.items()}
    chart(
        distribution_figure(sides),
        "Histogram of the neuron's activation on each side's prompts: mean "
        + " and ".join(f"{mean:.3g} on {side}" for side, mean in means.items()),
        key="distributions",
    )
    st.caption(
        f"Activation at the {measured.position} token position, prompt by prompt, as shares of "
        "each side."
    )
    st.markdown("**Strongest prompts**")
    st.caption(
        plain(f"Framed: the strongest token. {measured.rule[0].upper()}{measured.rule[1:]}.")
    )
    limit = max((abs(strong.activation) for strong in measured.strongest), default=1.0)
    for strong in measured.strongest:
        with st.container(border=True):
            st.badge(
                f"{strong.side} prompt {strong.index + 1}: {strong.activation:.4g}",
                color="orange" if strong.side == "harmful" else "blue",
            )
            show_tokens(strong.tokens, strong.token, limit)
    st.subheader("What it writes")
    left, right = st.columns(2)
    for where, title, effects in (
        (left, "Promoted tokens", measured.promoted),
        (right, "Suppressed tokens", measured.suppressed),
    ):
        with where:
            st.markdown(f"**{title}**")
            st.dataframe(_effects(effects), hide_index=True, height=300)
    st.markdown("**Neighbours: neurons that write in a like direction**")
    with st.container(horizontal=True):
        for near in measured.neighbours:
            st.page_link(
                "views/neuron.py",
                label=f"{near.layer}:{near.neuron} ({near.cosine:.2f})",
                query_params={
                    "study": study.key,
                    "layer": str(near.layer),
                    "neuron": str(near.neuron),
                },
            )
    downloads(f"neuron-{place}-activations", lambda: _values(measured), key="values")


def _effects(effects: list[Effect]) -> pd.DataFrame:
    return pd.DataFrame(
        {"token": repr(one.token), "id": one.id, "logit": one.logit} for one in effects
    )


def _values(measured: Measured) -> pd.DataFrame:
    return pd.DataFrame(
        {"prompts": side, "index": index, "activation": value}
        for side, found in measured.distributions.items()
        for index, value in enumerate(found.values)
    )


def _missing(study: Entry, layer: int, neuron: int) -> None:
    """What has to be measured, and the button that has it measured."""
    st.info(
        "Its activations, strongest prompts, tokens and neighbours have not been measured: that "
        "needs the model, for some seconds to minutes.",
        icon=":material/explore:",
    )
    if st.button("Compute this page", type="primary", icon=":material/play_arrow:"):
        try:
            request = measuring_request(study, layer, neuron)
        except SafeNeuronError as error:
            failure(error)
            return
        if launch_from_page("neuron", request):
            st.rerun()


def _page(study: Entry, job: Job | None) -> None:
    table = Table(study)
    mask = data.mask_of(study)
    NeuronSet(table.widths, mask.neuron_set().layers())  # says so where the two do not fit
    named = [name for name in ("sas", *table.scores) if name in table.scores]
    remember_place(table.strongest(named[0]) if named else (0, 0))
    layer, neuron = place_fields(table.widths)
    place = f"{layer}-{neuron}"
    working_buttons(mask, (layer, neuron))
    columns = {
        name: table.column(name)
        for score in table.scores
        for name in (score, f"{score}_p")
        if name in table.columns
    }
    standing = standings(columns, table.widths, layer, neuron)
    st.subheader("Scores")
    st.dataframe(
        _standings(standing),
        hide_index=True,
        column_config={
            "value": st.column_config.NumberColumn(format="%.4g"),
            "percentile": st.column_config.ProgressColumn(
                format="%.2f", min_value=0, max_value=100, width="small"
            ),
        },
    )
    measured = kept_measurement(Store(), mask, layer, neuron)
    asked = job and (job.request.get("layer"), job.request.get("neuron")) == (layer, neuron)
    if measured is not None:
        _measured(measured, study, place)
    else:
        if job is not None and asked:
            with st.container(border=True):
                job_panel(job)
        _missing(study, layer, neuron)
    st.subheader("Masks that have it")
    members = _memberships(mask, (layer, neuron))
    st.dataframe(members, hide_index=True)
    downloads(
        f"neuron-{place}",
        lambda: _standings(standing),
        lambda: {
            "model": mask.model.model_dump(mode="json", exclude={"neurons_per_layer"}),
            "layer": layer,
            "neuron": neuron,
            "scores": [one.model_dump() for one in standing],
            "masks": members,
            "measured": measured and measured.model_dump(mode="json", by_alias=True),
        },
        key="page",
    )


admit()
heading(
    "Neuron",
    "One neuron: how it scores, what it fires on, what it writes, and which masks have it.",
)
job = asked_job()
job = job if job is not None and job.verb == "neuron" else None
found = data.studies()
if not found:
    nothing_yet("study", "identify the neurons of a model of yours on the Safety map")
else:
    entries = {entry.key: entry for entry in found}
    labels = {key: data.study_label(entry) for key, entry in entries.items()}
    study = entries[choose_one("study", "Study", list(entries), lambda key: labels[key])]
    terms("ES", "SAS", "Percentile", "Promoted", "Neighbours", "Working mask")
    try:
        _page(study, job)
    except SafeNeuronError as error:
        failure(error)
