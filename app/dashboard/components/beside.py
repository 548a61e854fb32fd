"""A second map beside the first, or what it has more: another study, or another score."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import streamlit as st

from analysis.figures.maps import Colours
from analysis.figures.paper import redistribution_figure
from analysis.figures.style import NAMES
from analysis.safety_map import colour_limit, mass_by_layer
from analysis.select import Selection
from analysis.store import Entry
from app.dashboard import data
from app.dashboard.components.chart import chart
from app.dashboard.components.choose import choose_one
from app.dashboard.components.selection import chosen_by, together
from app.dashboard.components.text import plain
from app.dashboard.tables import Table, Vector
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

NOTHING, STUDY, SCORE = "", "study-", "score-"
VIEWS = ("side by side", "difference")
Draw = Callable[[Vector, NeuronSet, Colours, str], None]


@dataclass(frozen=True)
class Beside:
    """The second map.

    Args:
        label: what it is, in a few words.
        table: its scores.
        score: which of them colours it; None for the first map's.
        neurons: what is selected there; None for as many as in the first, by its score.
        view: one of ``VIEWS``.
    """

    label: str
    table: Table
    score: str | None
    neurons: NeuronSet | None
    view: str


def choose_beside(entry: Entry, table: Table, selection: Selection | None) -> Beside | None:
    """Widgets that choose a second map; None for the first alone.

    Raises:
        SafeNeuronError: the other study cannot be read.
    """
    others = {
        STUDY + other.key: other
        for other in data.studies()
        if other.key != entry.key and list(other.summary["widths"]) == table.widths
    }
    labels = {NOTHING: "nothing"}
    labels |= {SCORE + name: f"this study by {NAMES.get(name, name)}" for name in table.scores}
    labels |= {name: data.study_label(other) for name, other in others.items()}
    chosen = choose_one(
        "with",
        "Compare with",
        list(labels),
        lambda name: labels[name],
        key=f"with-{entry.key}",
        help="Another study of the same shape (before and after alignment, text and images), where "
        "the same rule chooses; or another score, by which as many are chosen.",
    )
    if chosen == NOTHING:
        for name in ("with", "as"):
            st.query_params.pop(name, None)
        return None
    shown = st.query_params.get("as", VIEWS[0])
    usual = shown if shown in VIEWS else VIEWS[0]
    view = st.segmented_control("As", VIEWS, default=usual, key=f"as-{entry.key}") or VIEWS[0]
    st.query_params["as"] = view
    if chosen.startswith(SCORE):
        name = chosen.removeprefix(SCORE)
        return Beside(f"by {NAMES.get(name, name)}", table, name, None, view)
    other = others[chosen]
    their = Table(other)
    try:
        found = chosen_by(their, selection) if selection else None
    except SafeNeuronError:
        found = None
    neurons = together(found) if found else data.mask_of(other).neuron_set()
    return Beside(data.study_label(other), their, None, neurons, view)


def show_beside(beside: Beside, table: Table, neurons: NeuronSet, color: str, draw: Draw) -> None:
    """Draw both maps, or their difference; ``draw`` is given values, neurons, colours, a name.

    Raises:
        SafeNeuronError: the second table lacks the score.
    """
    score = beside.score or color
    if score not in beside.table.columns:
        raise SafeNeuronError(f"the other study has no {score}; choose another colour")
    other = beside.neurons or _as_many(beside.table, score, len(neurons))
    both, joined, left = neurons & other, other - neurons, neurons - other
    st.caption(
        plain(
            f"Second: {beside.label}. Selected in both: {len(both):,}; only in the second: "
            f"{len(joined):,}; only in the first: {len(left):,}."
        )
    )
    if beside.view == VIEWS[1]:
        values = table.minus(color, beside.table, score)
        unit = NAMES.get(color, color) if score == color else "percentile"
        label = f"second less first, {unit}; full colour where the selection changed"
        draw(values, joined | left, Colours(label, colour_limit(values)), "difference")
        return
    sides = (("first", table, color, neurons), ("second", beside.table, score, other))
    for place, (which, source, name, chosen) in zip(st.columns(2), sides, strict=True):
        with place:
            label = NAMES.get(name, name)
            # One scale for one score, so that the two can be held against each other.
            limit = max(table.limit(score), beside.table.limit(score))
            limit = limit if score == color else source.limit(name)
            draw(source.column(name), chosen, Colours(f"{which}: {label}", limit), which)
    _moved(sides)


def _moved(sides: tuple[tuple[str, Table, str, NeuronSet], ...]) -> None:
    """Where each map's safety mass lies, layer by layer."""
    rows = pd.DataFrame({"layer": np.arange(len(sides[0][1].widths))})
    for when, (_, source, name, chosen) in zip(("before", "after"), sides, strict=True):
        mass = mass_by_layer(source.column(name), chosen)
        rows[f"mass_{when}"] = mass
        rows[f"share_{when}"] = mass / mass.sum() if mass.sum() else 0.0
        rows[f"neurons_{when}"] = chosen.counts()
    most = [int(rows[f"share_{when}"].argmax()) for when in ("before", "after")]
    chart(
        redistribution_figure(rows, ("first", "second")),
        "Bars: share of the safety mass in each layer, of the first map and of the second; the "
        f"first has most in layer {most[0]}, the second in layer {most[1]}",
        key="moved",
    )
    st.caption("Where the safety mass lies: each layer's share of the map's own.")


def _as_many(table: Table, score: str, count: int) -> NeuronSet:
    """So many neurons, the highest by a score."""
    share = (count + 0.5) / sum(table.widths)
    if not count or not 0 < share < 1:
        return NeuronSet.empty(table.widths)
    return together(chosen_by(table, Selection(score, share={score: share})))
