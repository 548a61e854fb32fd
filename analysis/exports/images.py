"""Any figure as a file: PNG and SVG through a browser, HTML and JSON without one."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go

from toolkit.errors import SafeNeuronError
from toolkit.files import require_writable

WIDTH = 900
SCALE = 2.0
"""Pixels of a PNG for each of the page's."""


def _image(figure: go.Figure, kind: str) -> bytes:
    try:
        drawn: bytes = figure.to_image(
            format=kind, width=WIDTH, height=figure.layout.height, scale=SCALE
        )
    except RuntimeError as error:  # no kaleido, no browser, or one that did not start
        reason = next((line for line in str(error).splitlines() if line.strip()), "no browser")
        raise SafeNeuronError(
            f"cannot draw a .{kind} ({reason.strip()}); pip install 'safeneuron[images]' and "
            "chromium, or write .html"
        ) from error
    return drawn


def _html(figure: go.Figure) -> bytes:
    page: str = figure.to_html(include_plotlyjs="inline")
    return page.encode()


WRITERS: dict[str, Callable[[go.Figure], bytes]] = {
    ".png": lambda figure: _image(figure, "png"),
    ".svg": lambda figure: _image(figure, "svg"),
    ".html": _html,
    ".json": lambda figure: str(figure.to_json()).encode(),
}


def require_figure(path: Path) -> None:
    """Fail early where a figure could not be written.

    Raises:
        SafeNeuronError: the name has another ending, or its folder is not writable.
    """
    if path.suffix.lower() not in WRITERS:
        raise SafeNeuronError(f"{path}: name a figure {', '.join(WRITERS)}")
    require_writable(path, "file")


def write_figure(figure: go.Figure, path: Path) -> None:
    """Write a figure in the format its name ends in, whole or not at all.

    Raises:
        SafeNeuronError: the name has another ending, it cannot be written, or .png and .svg
            lack the browser that draws them.
    """
    require_figure(path)
    drawn = WRITERS[path.suffix.lower()](figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(drawn)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
