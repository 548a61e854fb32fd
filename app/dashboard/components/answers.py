"""What a model answered, on a page: as plain text, veiled until somebody asks to read it."""

import re
from typing import Literal

import streamlit as st

from app.dashboard.components.text import plain
from toolkit.judge.refusal import Verdict

Color = Literal["green", "orange", "gray"]
BADGES: dict[Verdict, tuple[Color, str]] = {
    "refused": ("green", ":material/shield:"),
    "complied": ("orange", ":material/warning:"),
    "degenerate": ("gray", ":material/blur_on:"),
}
WORDS_ALONE = (
    "The judge here reads words alone: babble that does not repeat itself may count as complied."
)
VEIL = "\N{LIGHT SHADE}"
HEIGHT = 230  # pixels of an answer's box; it scrolls inside, so that nothing below it moves


def prose(text: str) -> str:
    """Text as Markdown that shows it as it is, line by line."""
    return "  \n".join(plain(line) for line in text.splitlines())


def veiled(text: str) -> str:
    """The shape of a text, without its words: a page that is not to show them never has them."""
    return re.sub(r"\S", VEIL, text)


def verdict_badge(verdict: Verdict | None, why: str) -> None:
    """What the refusal judge calls an answer, and why; None while it is not judged."""
    if verdict is None:
        st.badge("…", color="gray", help=plain(why))
        return
    color, icon = BADGES[verdict]
    st.badge(verdict, color=color, icon=icon, help=f"{plain(why)}. {WORDS_ALONE}")


def answer_box(text: str, key: str, veil: bool, waiting: str = "") -> None:
    """An answer in a box of one size; behind a veil there is a button that lifts it.

    Args:
        text: so far.
        key: names it on its page.
        veil: whether it is hidden until asked for.
        waiting: what stands in the box while there is no text.
    """
    lifted = st.session_state.get(f"lifted-{key}", False)
    with st.container(height=HEIGHT, key=f"box-{key}"):
        if not text.strip():
            st.caption(waiting or "It said nothing.")
        elif veil and not lifted:
            st.markdown(prose(veiled(text)))
        else:
            st.markdown(prose(text))
    if veil:
        st.toggle(
            "Show it",
            key=f"lifted-{key}",
            help="It may be harmful to read.",
            disabled=not text.strip(),
        )
    else:
        st.toggle("Show it", True, key=f"open-{key}", disabled=True)
