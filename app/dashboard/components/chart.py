"""A figure on a page: on the reader's paper, and with words for who cannot see it."""

from collections.abc import Callable
from typing import Any, Literal

import plotly.graph_objects as go
import streamlit as st

from analysis.figures.themes import DARK, LIGHT, on_paper

Mode = Literal["points", "box"]


def chart(
    figure: go.Figure,
    alt: str,
    key: str,
    on_select: Callable[[], None] | None = None,
    selection_mode: tuple[Mode, ...] = ("points",),
) -> None:
    """Draw a figure.

    Args:
        figure: of :mod:`analysis.figures`.
        alt: what it shows, for screen readers.
        key: names it on its page.
        on_select: called when a point is clicked, or a box drawn.
        selection_mode: which of the two there is.
    """
    paper = DARK if st.context.theme.type == "dark" else LIGHT
    clicks: dict[str, Any] = {}
    if on_select is not None:
        clicks = {"on_select": on_select, "selection_mode": selection_mode}
    st.plotly_chart(
        on_paper(figure, paper),
        theme=None,
        height=int(figure.layout.height),  # so that nothing jumps when it is drawn
        key=key,
        alt=alt,
        config={"displaylogo": False},
        **clicks,
    )
