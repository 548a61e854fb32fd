"""A model and a mask for it: the model's own stand first, and another model's is pointed out."""

import streamlit as st

from app.dashboard import data, kin
from app.dashboard.components.choose import choose_model, from_choices
from app.dashboard.components.text import plain
from app.dashboard.data import Choice


def model_and_mask(label: str, without: Choice) -> tuple[str | None, str | None, bool]:
    """Fields for both, kept apart from any form so that they follow each other at once.

    Args:
        label: of the mask's field.
        without: the choice of no mask, first where the model has none of its own.

    Returns:
        The model, the mask's path or the value of ``without``, and whether a mask of another
        model is to be used all the same.
    """
    left, right = st.columns(2)
    with left:
        model = choose_model()
    own, others = kin.split_masks(model or "")
    asked = st.query_params.get("mask")
    chosen_before = st.session_state.get("mask-for")
    if asked and chosen_before not in (None, model) and asked not in _values(own):
        # A mask does not follow to another model.
        st.query_params["mask"] = [*own, without][0].value
    st.session_state["mask-for"] = model
    with right:
        mask = from_choices(label, [*own, without, *others], "mask")
    force = st.toggle("Use the mask although it was made for another model of this shape")
    if model and mask in _values(others) and not force:
        st.warning(
            plain(
                f"This mask was made for another model than {data.model_label(model)}, as far as "
                "is known here, so the job would refuse it: choose one of the model's own, or "
                "switch this on."
            ),
            icon=":material/warning:",
        )
    return model, mask, force


def _values(choices: list[Choice]) -> set[str]:
    return {choice.value for choice in choices}
