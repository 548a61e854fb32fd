"""The story in four notebooks, and what runs them from top to bottom.

``python -m analysis.notebooks`` runs all and keeps their outputs; a figure is kept as a
picture, so that a reader without a running kernel sees it too.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import SafeNeuronError

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDER = Path(__file__).parent
SECONDS = 900
"""Longest that one cell may take."""


def notebooks() -> list[Path]:
    """All of them, in the order they are read in."""
    return sorted(FOLDER.glob("*.ipynb"))


def run_notebook(path: Path, renderer: str = "png") -> "NotebookNode":
    """Run a notebook in a fresh kernel, in a folder's own working directory.

    Args:
        path: of the notebook, which stays as it is.
        renderer: of plotly's figures: ``png`` needs chromium and kaleido, ``json`` neither.

    Returns:
        The notebook with its outputs, free of times, widgets and what went to stderr.

    Raises:
        SafeNeuronError: Jupyter is not installed, or a cell failed.
    """
    try:
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError as error:
        raise SafeNeuronError("notebooks need pip install '.[notebooks]'") from error
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    environment = {
        **os.environ,
        "PLOTLY_RENDERER": renderer,
        # tqdm would rather have a widget.
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        raise SafeNeuronError(f"{path.name} failed: {error.ename}: {error.evalue}") from error
    for cell in notebook.cells:
        # Libraries' warnings and progress bars tell of the run and the machine, not of the result.
        if cell.cell_type == "code":
            cell.outputs = [told for told in cell.outputs if told.get("name") != "stderr"]
    notebook.metadata.pop("widgets", None)
    # The interpreter's version is the reader's own affair.
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook
