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
    """Buttons for a CSV and a JSON file.

    Args:
        name: of the files, without its end.
        table: makes what the CSV holds, and the JSON too where ``value`` is left out.
        value: makes what the JSON holds.
        key: tells the buttons from others on the page.
    """
    made = value or table
    with st.container(horizontal=True):
        if table is not None:
            _button(f"{name}.csv", lambda: table().to_csv(index=False).encode(), "text/csv", key)
        if made is not None:
            _button(f"{name}.json", lambda: as_json(made()), "application/json", key)


def _button(name: str, make: Callable[[], bytes], kind: str, key: str) -> None:
    st.download_button(
        name,
        make,
        name,
        kind,
        icon=":material/download:",
        key=f"download-{key}-{name}",
        on_click="ignore",
    )
