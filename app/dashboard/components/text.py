"""Words on a page: titles, and data shown as the plain text it is."""

import html
import re

import streamlit as st

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$:^=@])")


def plain(text: str) -> str:
    """Text as Markdown that shows it as it is: no links, pictures or HTML come of data."""
    # Tags as entities: what Markdown does not read is no tag wherever the page puts it.
    return html.escape(_MARKUP.sub(r"\\\1", " ".join(text.split())), quote=False)


def heading(title: str, explanation: str) -> None:
    """A page's title and what it is for."""
    st.title(title)
    st.caption(explanation)


def nothing_yet(what: str, form: str) -> None:
    """What to do where the store has nothing to show."""
    st.info(
        f"No {what} yet. Run `safeneuron demo` in a terminal for a first one on the embedded "
        f"model, or {form}.",
        icon=":material/explore:",
    )


def failure(error: Exception) -> None:
    """A user's error, in its one line."""
    st.error(plain(str(error)), icon=":material/error:")
