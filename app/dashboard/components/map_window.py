"""Which part of a map is shown, and what a click or a box on it means."""

import re
from typing import Any

import numpy as np
import streamlit as st

from analysis.safety_map import Grid, Window
from app.dashboard.components.choose import choose_one

ALL = "all layers"
BOX = re.compile(r"([0-9]{1,9})-([0-9]{1,9})\.([0-9]{1,9})-([0-9]{1,9})")


def choose_window(widths: list[int], key: str) -> Window:
    """The part of the model to show: all of it, a layer, or the box that was drawn."""
    layers = [str(layer) for layer, width in enumerate(widths) if width]
    opened = choose_one(
        "open",
        "Show",
        [ALL, *layers],
        lambda name: name if name == ALL else f"layer {name}, every neuron",
        key=f"open-{key}",
        on_change=forget_box,
        help="A layer is folded into rows, so that each of its neurons has a square of its own. "
        "Or let a drag open a box.",
    )
    whole = Window.whole(widths) if opened == ALL else Window.of_layer(widths, int(opened))
    match = BOX.fullmatch(st.query_params.get("box", ""))
    if match is None:
        st.query_params.pop("box", None)
        return whole
    top, bottom, left, right = map(int, match.groups())
    return Window((top, bottom), (left, right)).within(widths)


def drag_opens() -> bool:
    """Whether a drag on the map opens a box; else it zooms, and a click chooses a neuron.

    The chart tells of clicks or of boxes, not of both at once.
    """
    return st.toggle(
        "A drag opens a box",
        key="drag",
        help="Every neuron of the box, or as many as fit. Off: a drag zooms into the picture, and "
        "a click shows a neuron.",
    )


def forget_box() -> None:
    """Back to all of what is shown."""
    st.query_params.pop("box", None)


def clicked(selection: Any, cells: Grid) -> None:
    """A click chooses its neuron, a box opens what is in it.

    Args:
        selection: what the chart says was selected.
        cells: what it showed.
    """
    if selection.box:
        box = selection.box[0]
        st.query_params["box"] = "{}-{}.{}-{}".format(*boxed(box["x"], box["y"], cells))
        return
    points = [point for point in selection.points if "customdata" in point]
    if points:
        carried = points[0]["customdata"]
        # A row of a typed array comes back as an object.
        neuron = carried["0"] if isinstance(carried, dict) else carried[0]
        st.session_state["neuron"] = int(neuron)
        layer = cells.window.layers[0] if cells.folded else points[0]["y"]
        st.session_state["layer"] = int(layer)


def boxed(x: list[float], y: list[float], cells: Grid) -> tuple[int, int, int, int]:
    """First and last layer, first and last neuron of a box in the map's own coordinates."""
    (left, right), (low, high) = sorted(x), sorted(y)
    if cells.folded:
        across = cells.value.shape[1]
        rows = cells.first[(cells.first >= low - across / 2) & (cells.first <= high + across / 2)]
        first, last = (int(rows[0]), int(rows[-1]) + across - 1) if len(rows) else (0, across - 1)
        layer = cells.window.layers[0]
        return layer, layer, first, last
    ends = (np.rint(low), np.rint(high), np.floor(left), np.ceil(right))
    top, bottom, start, stop = (max(int(end), 0) for end in ends)
    return min(top, bottom), max(top, bottom), start, stop
