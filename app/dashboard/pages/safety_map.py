"""Safety map: where the safety neurons are, chosen anew as one moves a threshold."""

from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from analysis.figures import layer_fraction_figure, safety_map_figure, score_histogram
from analysis.requests import IdentifyRequest, parse_request
from analysis.select import METHODS, Selection, select_parts
from analysis.store import Entry
from app.dashboard import data
from app.dashboard.components.chart import chart
from app.dashboard.components.choose import choose_one, from_choices, number
from app.dashboard.components.gate import admit
from app.dashboard.components.job import asked_job, job_panel, launch_from_page
from app.dashboard.components.text import failure, heading, nothing_yet, plain
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile, MethodInfo
from toolkit.neurons import NeuronSet

WAYS = {"thresholds": "Thresholds", "top": "Top share", "each": "A share for each score"}
METHOD_NAMES = {"es": "ES", "sas": "SAS", "es+sas": "ES or SAS"}
COLORS = {"sas": "SAS", "es": "ES", "delta": "shift"}
FACTS = {
    "es": ("ES", "Cohen's d: shift over the pooled deviation"),
    "sas": ("SAS", "z-score of the shift among the layer's neurons"),
    "delta": ("Shift", "mean on harmful minus mean on harmless prompts"),
    "mean_harmful": ("Mean, harmful", "mean activation on harmful prompts"),
    "mean_harmless": ("Mean, harmless", "mean activation on harmless prompts"),
}


def _selection(entry: Entry) -> Selection:
    """The widgets that choose, set at first as the study was made."""
    made = entry.summary["parameters"]
    usual = "top" if "top" in made else "each" if {"top_es", "top_sas"} & set(made) else ""
    usual = usual or "thresholds"
    key = entry.key
    left, middle, right = st.columns([2, 2, 3])
    asked = st.query_params.get("method", entry.summary["method"])
    method = left.radio(
        "Score",
        METHODS,
        index=METHODS.index(asked) if asked in METHODS else 2,
        format_func=lambda name: METHOD_NAMES[name],
        key=f"method-{key}",
        help="ES asks how far apart the two prompt sets lie for one neuron; SAS how unusual its "
        "shift is within its layer. The paper unites both.",
    )
    ways = list(WAYS)
    asked = st.query_params.get("by", usual)
    by = middle.radio(
        "Choose by",
        ways,
        index=ways.index(asked) if asked in ways else 0,
        format_func=lambda name: WAYS[name],
        key=f"by-{key}",
        help="Neurons above a threshold, or the best share of all neurons.",
    )
    values: dict[str, float] = {}
    with right:
        scores = method.split("+")
        if by == "thresholds":
            for score in scores:
                name = f"tau_{score}"
                values[name] = _slider(f"{score.upper()} above", name, made, 2.0, 0.0, 8.0, key)
        elif by == "top":
            values["top"] = _share("Share of all neurons, %", "top", made, 0.01, key)
        else:
            for score in scores:
                label = f"Share by {score.upper()}, %"
                values[f"top_{score}"] = _share(label, f"top_{score}", made, 0.005, key)
    for name, value in {"method": method, "by": by, **values}.items():
        st.query_params[name] = str(value)
    for name in {"tau_es", "tau_sas", "top", "top_es", "top_sas"} - set(values):
        st.query_params.pop(name, None)
    return Selection.of(method, values)


def _slider(
    label: str, name: str, made: dict[str, Any], usual: float, low: float, high: float, key: str
) -> float:
    start = min(max(number(name, float(made.get(name, usual))), low), high)
    return float(st.slider(label, low, high, start, 0.05, key=f"{name}-{key}"))


def _share(label: str, name: str, made: dict[str, Any], usual: float, key: str) -> float:
    """A share of the neurons, shown in per cent."""
    start = 100 * number(name, float(made.get(name, usual)))
    start = min(max(round(start, 2), 0.05), 20.0)
    shown = st.slider(label, 0.05, 20.0, start, 0.05, format="%.2f", key=f"{name}-{key}")
    return round(shown / 100, 6)


def _mask(entry: Entry, selection: Selection, parts: dict[str, NeuronSet]) -> MaskFile:
    """The selection as a mask file, with the study's provenance."""
    made = data.mask_of(entry)
    kept = {name: made.method.parameters.get(name) for name in ("position", "backend", "dtype")}
    parameters: dict[str, Any] = {**selection.parameters(), **kept}
    return MaskFile.of(
        reduce(or_, parts.values()),
        made.model,
        MethodInfo(name=selection.method, parameters=parameters),
        made.prompts,
        parts,
    )


def _clicked() -> None:
    """A click on the map chooses its neuron in the number fields."""
    points = st.session_state["map"].selection.points
    if points and "customdata" in points[0]:
        carried = points[0]["customdata"]
        st.session_state["layer"], st.session_state["neuron"] = int(carried[0]), int(carried[1])


def _inspector(table: pd.DataFrame, chosen: tuple[int, int], neurons: NeuronSet) -> None:
    layer, neuron = chosen
    start = int(np.sum(neurons.widths[:layer]))
    row = table.iloc[start + neuron]
    inside = chosen in neurons
    st.markdown(f"**Layer {layer}, neuron {neuron}**")
    st.badge(
        "in the mask" if inside else "not in the mask",
        color="orange" if inside else "gray",
        icon=":material/check:" if inside else ":material/remove:",
    )
    st.table(
        pd.DataFrame(
            [(label, f"{row[name]:.4g}", why) for name, (label, why) in FACTS.items()],
            columns=["", "value", "what it is"],
        ).set_index("")
    )


def _number_fields(table: pd.DataFrame, neurons: NeuronSet) -> tuple[int, int]:
    """The chosen neuron; the strongest at first."""
    widths = neurons.widths
    best = table.iloc[int(table["sas"].to_numpy().argmax())]
    asked = (int(number("layer", best["layer"])), int(number("neuron", best["neuron"])))
    layers = [layer for layer, width in enumerate(widths) if width]
    st.session_state.setdefault("layer", asked[0])
    st.session_state.setdefault("neuron", asked[1])
    # Another study may be smaller than the one the fields were set for.
    st.session_state["layer"] = min(max(st.session_state["layer"], layers[0]), layers[-1])
    first, second = st.columns(2)
    layer = int(first.number_input("Layer", layers[0], layers[-1], step=1, key="layer"))
    last = max(widths[layer] - 1, 0)
    st.session_state["neuron"] = min(max(st.session_state["neuron"], 0), last)
    neuron = int(second.number_input("Neuron", 0, last, step=1, key="neuron"))
    st.query_params["layer"], st.query_params["neuron"] = str(layer), str(neuron)
    return layer, neuron


def _study(entry: Entry) -> None:
    table = data.scores(entry)
    selection = _selection(entry)
    parts = select_parts(table, entry.summary["widths"], selection)
    neurons = reduce(or_, parts.values())

    columns = st.columns(3 + len(parts))
    columns[0].metric("Safety neurons", f"{len(neurons):,}", border=True)
    columns[1].metric("Share of the model", f"{neurons.fraction:.2%}", border=True)
    columns[2].metric(
        "Layers with any", f"{len(neurons.layers())} of {len(neurons.widths)}", border=True
    )
    for place, (name, part) in zip(columns[3:], parts.items(), strict=True):
        place.metric(f"By {name.upper()}", f"{len(part):,}", border=True)

    color = st.segmented_control(
        "Colour", list(COLORS), default="sas", format_func=lambda name: COLORS[name], key="color"
    )
    drawing = st.container()
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.subheader("One neuron")
        st.caption("Click a square on the map, or give its place here.")
        chosen = _number_fields(table, neurons)
        _inspector(table, chosen, neurons)
    with drawing:
        chart(
            safety_map_figure(table, neurons, color or "sas", chosen),
            f"Safety map: {len(neurons.widths)} layers against their neurons, the {len(neurons):,} "
            f"selected in full colour, coloured by {COLORS[color or 'sas']}",
            key="map",
            on_select=_clicked,
        )
        st.caption(
            "Each square is one MLP neuron. Vermilion fires more on harmful prompts, blue on "
            "harmless ones, grey is zero; full colour is selected, faint the strongest of the "
            "rest. Drag to zoom, double-click to return."
        )
    with right:
        st.subheader("By layer")
        st.caption("Share of each layer's neurons that is selected; dotted: of the whole model.")
        counts = neurons.counts()
        most = int(counts.argmax())
        chart(
            layer_fraction_figure(neurons),
            f"Bars: selected share of each layer; layer {most} has most, {int(counts[most]):,}",
            key="by-layer",
        )
    st.subheader("Scores of all neurons")
    for place, name in zip(st.columns(len(parts)), parts, strict=True):
        with place:
            tau = {"es": selection.tau_es, "sas": selection.tau_sas}[name]
            by_threshold = not {"top", "top_es", "top_sas"} & set(selection.parameters())
            figure = score_histogram(table, name, tau if by_threshold else None)
            chart(
                figure,
                f"Histogram: how many neurons have each {name.upper()}, on a logarithmic axis",
                key=f"histogram-{name}",
            )
    _take_away(entry, table, _mask(entry, selection, parts))


def _take_away(entry: Entry, table: pd.DataFrame, mask: MaskFile) -> None:
    first, second, third = st.columns(3)
    first.download_button(
        "Mask as JSON",
        mask.to_json(),
        "mask.json",
        "application/json",
        icon=":material/download:",
        width="stretch",
    )
    second.download_button(
        "Scores as CSV",
        lambda: table.to_csv(index=False).encode(),
        "scores.csv",
        "text/csv",
        icon=":material/download:",
        width="stretch",
    )
    empty = not mask.count
    if third.button(
        "Attack this selection", icon=":material/bolt:", disabled=empty, width="stretch"
    ):
        kept = data.keep_mask(mask)
        asked = {"mask": str(kept), "model": mask.model.source}
        st.switch_page("pages/attack.py", query_params=asked)


def _form(expanded: bool) -> None:
    usual = IdentifyRequest.model_fields
    with (
        st.expander("Identify the safety neurons of a model", expanded, icon=":material/search:"),
        st.form("identify", border=False),
    ):
        model = from_choices("Model", data.model_choices(), "model", new=True)
        left, right = st.columns(2)
        harmful = left.text_input("Harmful prompts", usual["harmful"].default)
        harmless = right.text_input(
            "Harmless prompts",
            usual["harmless"].default,
            help="A known set, whole or a slice such as advbench[:100], or a file.",
        )
        a, b, c, d = st.columns(4)
        position = a.selectbox("Token position", ["last", "mean", "max"])
        backend = b.selectbox("Backend", ["torch", "transformerlens", "nnsight"])
        top = c.number_input("Top share, %", 0.05, 50.0, 1.0, 0.05)
        batch = d.number_input("Prompts at a time", 1, 512, usual["batch_size"].default)
        if st.form_submit_button("Identify", type="primary", icon=":material/play_arrow:"):
            values = {"model": model or "", "harmful": harmful, "harmless": harmless}
            values |= {"position": position, "backend": backend}
            values |= {"top": round(top / 100, 6), "batch_size": int(batch)}
            if not model:
                failure(SafeNeuronError("choose a model, or type the name of one"))
                return
            try:
                request = parse_request(IdentifyRequest, values)
            except SafeNeuronError as error:
                failure(error)
                return
            if launch_from_page("identify", request):
                st.rerun()


admit()
heading(
    "Safety map",
    "The MLP neurons that fire differently on harmful prompts: their layers, their scores, and "
    "what a threshold makes of them.",
)
found = data.studies()
job = asked_job()
if job is not None and job.verb == "identify":
    with st.container(border=True):
        job_panel(job)
if not found:
    nothing_yet("study", "identify the neurons of a model of yours below")
else:
    entries = {entry.key: entry for entry in found}
    labels = {key: data.study_label(entry) for key, entry in entries.items()}
    study = entries[choose_one("study", "Study", list(entries), lambda key: labels[key])]
    facts = study.summary
    st.caption(
        plain(
            f"{facts['architecture']}, {len(facts['widths'])} layers, {sum(facts['widths']):,} "
            f"neurons; {facts['harmful']} against {facts['harmless']}"
        )
    )
    try:
        _study(study)
    except SafeNeuronError as error:
        failure(error)
_form(expanded=not found)
