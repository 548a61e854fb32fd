"""Widgets whose value stands in the address, so that a link restores the view."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from app.dashboard.data import Choice, model_choices
from toolkit.models.sources import EMBEDDED

MODELS_HELP = "\n\n".join(f"**{model.name}** {model.description}." for model in EMBEDDED.values())


def choose_one(
    name: str,
    label: str,
    options: Sequence[str],
    label_of: Callable[[str], str],
    usual: str | None = None,
    key: str | None = None,
    **more: Any,
) -> str:
    """A select box over ``options`` (at least one), kept in the address under ``name``.

    ``usual``, or the first, is chosen while the address names none of them. ``key`` is the
    widget's, where another study's choice is another.
    """
    first = (st.query_params.get(name), usual, options[0])
    index = options.index(next(value for value in first if value in options))
    key = key or f"{name}-choice"
    # A widget's value may be set before it is drawn, not after: a form below it leaves word.
    following = st.session_state.pop(f"{name}-next", None)
    if following in options:
        st.session_state[key] = following
    if st.session_state.get(key) not in (None, *options):
        del st.session_state[key]
    value = st.selectbox(label, options, index=index, format_func=label_of, key=key, **more)
    if value is None:
        value = options[0]
    st.query_params[name] = value
    return str(value)


def choose_many(
    name: str,
    label: str,
    options: Sequence[str],
    label_of: Callable[[str], str],
    usual: Sequence[str] | None = None,
    **more: Any,
) -> list[str]:
    """A multiple choice, kept in the address under ``name``; at first ``usual``, or one option."""
    asked = [part for part in st.query_params.get(name, "").split(",") if part in options]
    key = f"{name}-choices"
    if key in st.session_state:
        st.session_state[key] = [part for part in st.session_state[key] if part in options]
    values = st.multiselect(
        label, options, default=asked or usual or options[:1], format_func=label_of, key=key, **more
    )
    if values:
        st.query_params[name] = ",".join(values)
    return [str(value) for value in values]


def number(name: str, default: float) -> float:
    """A number from the address, or the default."""
    try:
        given = float(st.query_params.get(name, default))
    except ValueError:
        return default
    return given if math.isfinite(given) else default


def from_choices(
    label: str, choices: Sequence[Choice], name: str, new: bool = False, **more: Any
) -> str | None:
    """A select box over choices; with ``new``, something else may be typed."""
    labels = {choice.value: choice.label for choice in choices}
    asked = st.query_params.get(name)
    options = list(labels)
    if new and asked and asked not in options:
        options.append(asked)  # one that was typed
    value = st.selectbox(
        label,
        options,
        index=options.index(asked) if asked in options else (0 if options else None),
        format_func=lambda value: labels.get(value, value),
        accept_new_options=new,
        placeholder="embedded name, folder, .gguf file or hub name" if new else "none at hand",
        **more,
    )
    return None if value is None else str(value).strip() or None


def choose_model(help: str = "") -> str | None:
    """A select box over the models at hand, or one that is typed; ``help`` stands before theirs."""
    told = "\n\n".join(filter(None, (help, MODELS_HELP)))
    return from_choices("Model", model_choices(), "model", new=True, help=told)
