"""Number fields for one neuron, kept in the address."""

from collections.abc import Sequence

import streamlit as st

from app.dashboard.components.choose import number


def remember_place(usual: tuple[int, int]) -> tuple[int, int]:
    """The chosen neuron before its fields are drawn: the address's, else ``usual``."""
    st.session_state.setdefault("layer", int(number("layer", usual[0])))
    st.session_state.setdefault("neuron", int(number("neuron", usual[1])))
    return st.session_state["layer"], st.session_state["neuron"]


def place_fields(widths: Sequence[int]) -> tuple[int, int]:
    """Two fields, layer and neuron, that stay within the model."""
    layers = [layer for layer, width in enumerate(widths) if width]
    # Another study may be smaller than the one the fields were set for.
    st.session_state["layer"] = min(max(st.session_state["layer"], layers[0]), layers[-1])
    first, second = st.columns(2)
    layer = int(first.number_input("Layer", layers[0], layers[-1], step=1, key="layer"))
    last = max(widths[layer] - 1, 0)
    st.session_state["neuron"] = min(max(st.session_state["neuron"], 0), last)
    neuron = int(second.number_input("Neuron", 0, last, step=1, key="neuron"))
    st.query_params["layer"], st.query_params["neuron"] = str(layer), str(neuron)
    return layer, neuron
