"""What a page shows, as files: made when they are asked for, and not before."""

import json
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st


def as_json(value: Any) -> bytes:
    """A value as JSON, with null for what is no number."""
    return (json.dumps(_plain(value), indent=1, default=str, ensure_ascii=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return _plain(value.astype(object).where(value.notna(), None).to_dict("records"))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def downloads(
    name: str,
    table: Callable[[], pd.DataFrame] | None = None,
    value: Callable[[], Any] | None = None,
    key: str = "",
) -> None:
    """Buttons for a CSV and a JSON file, in a row of their own.

    Args:
        name: of the files, without its end.
        table: makes what the CSV holds, and the JSON too where ``value`` is left out.
        value: makes what the JSON holds.
        key: tells the buttons from others on the page.
    """
    with st.container(horizontal=True):
        both_buttons(name, table, value, key)


def both_buttons(
    name: str,
    table: Callable[[], pd.DataFrame] | None = None,
    value: Callable[[], Any] | None = None,
    key: str = "",
) -> None:
    """The buttons of :func:`downloads`, in a row that the caller has."""
    made = value or table
    if table is not None:
        file_button(
            f"{name}.csv", lambda: table().to_csv(index=False).encode(), "text/csv", key=key
        )
    if made is not None:
        file_button(f"{name}.json", lambda: as_json(made()), "application/json", key=key)


def file_button(
    name: str,
    make: Callable[[], bytes],
    kind: str,
    disabled: bool = False,
    key: str = "",
    label: str | None = None,
    help: str | None = None,
) -> None:
    """A button for a file that is made when it is asked for, without a run of the page.

    Args:
        name: of the file.
        make: gives what it holds.
        kind: its media type.
        disabled: there is nothing to be had yet.
        key: tells the button from others on the page.
        label: of the button, where it is not the file's name.
        help: more about the file.
    """
    st.download_button(
        label or name,
        make,
        name,
        kind,
        icon=":material/download:",
        key=f"download-{key}-{name}",
        help=help,
        disabled=disabled,
        on_click="ignore",
    )
