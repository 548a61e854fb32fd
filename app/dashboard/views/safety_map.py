"""Safety map: where the safety neurons are, chosen anew as one moves a threshold."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st

from analysis.figures import histogram_figure
from analysis.figures.maps import Colours, Strips, map_figure
from analysis.figures.style import NAMES
from analysis.safety_map import Window, grid
from analysis.select import Selection
from analysis.store import Entry
from app.dashboard import data
from app.dashboard.components.beside import Beside, choose_beside, show_beside
from app.dashboard.components.chart import chart
from app.dashboard.components.choose import choose_one
from app.dashboard.components.downloads import both_buttons, file_button
from app.dashboard.components.gate import admit
from app.dashboard.components.identify_form import identify_form
from app.dashboard.components.job import asked_job, job_panel
from app.dashboard.components.map_window import choose_window, clicked, drag_opens, forget_box
from app.dashboard.components.place import place_fields, remember_place
from app.dashboard.components.selection import mask_file, select_neurons, together
from app.dashboard.components.terms import terms
from app.dashboard.components.text import failure, heading, nothing_yet, plain
from app.dashboard.components.working import working_buttons
from app.dashboard.tables import Table, Vector, colours_of
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile
from toolkit.neurons import NeuronSet

FACTS = {
    "delta": ("Shift", "mean on harmful minus mean on harmless prompts"),
    "mean_harmful": ("Mean, harmful", "mean activation on harmful prompts"),
    "mean_harmless": ("Mean, harmless", "mean activation on harmless prompts"),
}


@dataclass(frozen=True)
class View:
    """How the maps are looked at.

    Args:
        window: the part that is shown.
        ring: the neuron that is ringed.
        boxes: whether a drag opens a box; else a click chooses a neuron.
    """

    window: Window
    ring: tuple[int, int]
    boxes: bool


def _inspector(entry: Entry, table: Table, chosen: tuple[int, int], neurons: NeuronSet) -> None:
    layer, neuron = chosen
    row = table.neuron(layer, neuron)
    inside = chosen in neurons
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**Layer {layer}, neuron {neuron}**")
        st.badge(
            "in the mask" if inside else "not in the mask",
            color="orange" if inside else "gray",
            icon=":material/check:" if inside else ":material/remove:",
        )
    facts = [(NAMES.get(name, name.upper()), row[name]) for name in table.scores]
    facts += [(f"{label}: {why}", row[name]) for name, (label, why) in FACTS.items() if name in row]
    st.table(
        pd.DataFrame(
            [(label, f"{value:.4g}") for label, value in facts], columns=["", "value"]
        ).set_index("")
    )
    asked = {"study": entry.key, "layer": str(layer), "neuron": str(neuron)}
    st.page_link(
        "views/neuron.py",
        label="Open its page",
        icon=":material/arrow_forward:",
        query_params=asked,
    )
    working_buttons(data.mask_of(entry), chosen)


def _metrics(neurons: NeuronSet, parts: dict[str, NeuronSet]) -> None:
    shown = {"Safety neurons": f"{len(neurons):,}", "Share of the model": f"{neurons.fraction:.2%}"}
    shown["Layers with any"] = f"{len(neurons.layers())} of {len(neurons.widths)}"
    shown |= {f"By {name.upper()}": f"{len(part):,}" for name, part in parts.items()}
    with st.container(horizontal=True):
        for label, value in shown.items():
            st.metric(label, value, border=True, width=150)


def _draw(
    values: Vector,
    neurons: NeuronSet,
    colours: Colours,
    view: View,
    name: str,
) -> None:
    """One map with its clicks and its words."""
    window = view.window
    cells = grid(values, neurons, window)
    # Beside a second map there is no room for them.
    alone = name == "map" and not cells.folded
    strips = Strips.of(values, neurons) if alone else None
    # Another key for another window: what was selected there is not selected here.
    key = f"{name}-{window.layers}-{window.neurons}-{view.boxes}"
    counts = neurons.counts()
    most = int(counts.argmax())
    figure = map_figure(cells, colours, strips, view.ring)
    chart(
        figure.update_layout(dragmode="select") if view.boxes else figure,
        f"Safety map, layers {window.layers[0]} to {window.layers[1]} against neurons "
        f"{window.neurons[0]} to {window.neurons[1]}, coloured by {colours.label}; the "
        f"{len(neurons):,} selected are in full colour, most of them, {int(counts[most]):,}, in "
        f"layer {most}",
        key=key,
        on_select=lambda: clicked(st.session_state[key].selection, cells),
        selection_mode=("box",) if view.boxes else ("points",),
    )


def _map(
    table: Table,
    neurons: NeuronSet,
    color: str,
    view: View,
    beside: Beside | None,
) -> None:
    """The map, or two."""
    window = view.window
    if "box" in st.query_params:
        (top, bottom), (left, right) = window.layers, window.neurons
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"Opened: layers {top} to {bottom}, neurons {left:,} to {right:,}.")
            st.button("Back to all", icon=":material/zoom_out:", on_click=forget_box)
    values = table.column(color)
    colours = Colours(NAMES.get(color, color), table.limit(color))
    if beside is None:
        _draw(values, neurons, colours, view, "map")
    else:
        show_beside(
            beside,
            table,
            neurons,
            color,
            lambda v, n, c, name: _draw(v, n, c, view, name),
        )
    st.caption(
        "Vermilion fires more on harmful prompts, blue on harmless ones, grey is zero; full colour "
        "is selected, faint is not. Where a square stands for several neurons it shows the "
        "strongest, of the selected if there are any; choose a layer, or let a drag open a "
        "box, to see each. A click shows a neuron below. Right of the map: share of the layer that "
        "is selected, and its safety mass."
    )


def _study(entry: Entry) -> None:
    table = Table(entry)
    selection, parts = select_neurons(entry, table)
    neurons = together(parts)
    _metrics(neurons, parts)
    options = colours_of(table.columns)
    first = next((name for name in ("sas", *parts) if name in options), options[0])
    left, middle, right = st.columns(3)
    with left:
        color = choose_one(
            "color", "Colour", options, lambda name: NAMES.get(name, name), first, key="color"
        )
    with middle:
        window = choose_window(table.widths, entry.key)
        boxes = drag_opens()
    with right:
        beside = choose_beside(entry, table, selection)
    # The map rings the neuron whose number fields stand below it.
    ring = remember_place(table.strongest(first))
    _map(table, neurons, color, View(window, ring, boxes), beside)
    left, right = st.columns([2, 3], gap="large")
    with left:
        st.subheader("One neuron")
        chosen = place_fields(table.widths)
        _inspector(entry, table, chosen, neurons)
    with right:
        st.subheader("Scores of all neurons")
        _histograms(table, selection, parts)
    _take_away(entry, table, selection, parts, color)


def _histograms(table: Table, selection: Selection | None, parts: dict[str, NeuronSet]) -> None:
    """How each score of the method is spread, and where its threshold is."""
    for name in [name for name in parts if name in table.scores][:3]:
        parameters = {} if selection is None else selection.parameters()
        threshold = parameters.get(f"tau_{name}")
        counts, edges = table.bins(name)
        tau = float(threshold) if isinstance(threshold, int | float) else None
        chart(
            histogram_figure(counts, edges, name, tau),
            f"Histogram: how many neurons have each {name.upper()}, on a logarithmic axis",
            key=f"histogram-{name}",
        )


def _take_away(
    entry: Entry,
    table: Table,
    selection: Selection | None,
    parts: dict[str, NeuronSet],
    color: str,
) -> None:
    st.subheader("Take it away")
    st.caption("This page's address restores this view. The camera above the map saves it as PNG.")
    neurons = together(parts)
    empty = not len(neurons)

    def mask() -> MaskFile:
        return mask_file(entry, selection, parts)

    with st.container(horizontal=True):
        if st.button("Attack this selection", icon=":material/bolt:", disabled=empty):
            made = mask()
            asked = {"mask": str(data.keep_mask(made)), "model": made.model.source}
            st.switch_page("views/attack.py", query_params=asked)
        if st.button("Keep this mask", icon=":material/bookmark_add:", disabled=empty):
            data.keep_mask(mask())
            st.toast("Kept: the Masks page, Attack and Align have it now.")
        file_button("mask.json", lambda: mask().to_json().encode(), "application/json", empty)
        both_buttons("selected", lambda: _selected(table, neurons))
        both_buttons("layers", lambda: _layers(table, neurons, color))
        file_button("scores.parquet", table.path.read_bytes, "application/vnd.apache.parquet")


def _selected(table: Table, neurons: NeuronSet) -> pd.DataFrame:
    """The selected neurons with all that the table says of them."""
    member = np.concatenate(neurons.masks())
    return table.whole().loc[member].reset_index(drop=True)


def _layers(table: Table, neurons: NeuronSet, color: str) -> pd.DataFrame:
    """What the side strip shows."""
    strips = Strips.of(table.column(color), neurons)
    rows = {"layer": np.arange(len(table.widths)), "width": table.widths}
    rows |= {"selected": neurons.counts(), "fraction": strips.fraction}
    return pd.DataFrame(rows | {f"mass_{color}": strips.mass})


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
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(
            plain(
                f"{facts['architecture']}, {len(facts['widths'])} layers, "
                f"{sum(facts['widths']):,} neurons; {facts['harmful']} against {facts['harmless']}"
            )
        )
        terms("Neuron", "ES", "SAS", "Shift", "Selected", "Safety mass", "Difference")
    try:
        _study(study)
    except SafeNeuronError as error:
        failure(error)
identify_form(expanded=not found)
