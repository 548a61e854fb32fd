"""The working mask on a page: how large it is, and one neuron into it or out of it."""

import streamlit as st

from analysis.mask_library import change_working, read_working
from app.dashboard.components.text import failure
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile


def working_buttons(mask: MaskFile, place: tuple[int, int]) -> None:
    """Add a neuron to the working mask of a mask's model, or take it out."""
    try:
        working = read_working(mask)
    except SafeNeuronError as error:
        failure(error)
        return
    inside = place in working.neuron_set()
    label = "Take from the working mask" if inside else "Add to the working mask"
    icon = ":material/playlist_remove:" if inside else ":material/playlist_add:"
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(label, icon=icon, key="working"):
            try:
                change_working(mask, *(((), [place]) if inside else ([place], ())))
            except SafeNeuronError as error:
                failure(error)
                return
            st.rerun()
        st.caption(f"It has {working.count:,} neurons; the Masks page has it.")
