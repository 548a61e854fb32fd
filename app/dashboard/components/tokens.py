"""A prompt with its tokens coloured by what a neuron did on each.

The one place that writes markup of its own: every letter of a token is escaped here.
"""

import html
from collections.abc import Sequence

import streamlit as st

from analysis.neuron import Token

# Vermilion for above zero and blue for below, as on the map; ink keeps its contrast on both
# papers at this strength.
ABOVE, BELOW = "213, 94, 0", "0, 114, 178"
STRONGEST = 0.6
BOX = (
    "line-height:2;overflow-wrap:anywhere;font-family:var(--st-code-font,monospace);font-size:.85em"
)
REASONS = {
    "template": "of the chat template, not counted",
    "first": "first token, not counted",
    "sink": "attention sink, not counted",
}


def tokens_html(tokens: Sequence[Token], strongest: int, limit: float) -> str:
    """Tokens as markup; all text in it is escaped.

    Args:
        tokens: of the prompt, in their order.
        strongest: which one to frame.
        limit: the activation of full colour, either way from zero.
    """
    spans = []
    for place, token in enumerate(tokens):
        shown = html.escape(_seen(token.text))
        if token.left_out is not None:
            told = REASONS[token.left_out]
            style = "opacity:.55"
        else:
            share = min(abs(token.activation) / limit, 1.0) if limit else 0.0
            color = ABOVE if token.activation > 0 else BELOW
            told = f"{token.activation:.4g}"
            style = f"background:rgba({color},{STRONGEST * share:.3f});border-radius:2px"
        if place == strongest:
            style += ";outline:2px solid currentColor;outline-offset:1px"
        spans.append(f'<span title="{html.escape(told)}" style="{style}">{shown}</span>')
    return f'<div style="{BOX}">{"".join(spans)}</div>'


def _seen(text: str) -> str:
    """A token with its line breaks shown, and a place to break the line after a space."""
    return text.replace("\n", "↵").replace("\t", "⇥") or "∅"


def show_tokens(tokens: Sequence[Token], strongest: int, limit: float) -> None:
    """Draw a prompt's tokens."""
    st.html(tokens_html(tokens, strongest, limit))
