"""The notebooks run from top to bottom, and what they show is there."""

import json
from pathlib import Path

import nbformat
import pytest

from analysis.notebooks import __main__ as command
from analysis.notebooks import notebooks, run_notebook
from tests.homes import link_models
from toolkit.errors import SafeNeuronError
from toolkit.known_prompts import KNOWN
from toolkit.models.sources import EMBEDDED, resolve
from toolkit.prompts import read_prompts

PLOTLY = "application/json"


def test_there_are_four() -> None:
    assert [path.name[:2] for path in notebooks()] == ["1_", "2_", "3_", "4_"]


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_kept_outputs_are_there_and_small(path: Path) -> None:
    assert path.stat().st_size < 1_000_000
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    # Nothing of the machine that they were kept on.
    assert str(Path.home()) not in json.dumps(outputs)


@pytest.fixture(scope="module")
def home_of_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded models, and no result yet: what one notebook finds, the next may reuse."""
    for name in EMBEDDED:
        resolve(name)
    for name in KNOWN:
        read_prompts(name)
    folder = tmp_path_factory.mktemp("notebooks")
    link_models(folder)
    return folder


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_they_run(path: Path, home_of_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFENEURON_HOME", str(home_of_models))
    kept = nbformat.read(path, as_version=4)
    ran = run_notebook(path, renderer="json")
    figures = [
        output["data"][PLOTLY]
        for cell in ran.cells
        for output in cell.get("outputs", [])
        if PLOTLY in output.get("data", {})
    ]
    pictures = [
        output
        for cell in kept.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) == len(pictures)
    assert all(figure["data"] for figure in figures)


def written(folder: Path, source: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source)]
    path = folder / "mine.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_a_cell_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SafeNeuronError, match=r"mine.ipynb failed: ZeroDivisionError: division"):
        run_notebook(written(tmp_path, "1 / 0"))


def test_the_command_keeps_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "import sys\nprint('half', file=sys.stderr)\n6 * 7")
    monkeypatch.setattr("sys.argv", ["notebooks", str(path)])
    assert command.main() == 0
    (cell,) = nbformat.read(path, as_version=4).cells
    assert cell.outputs[0]["data"]["text/plain"] == "42"
    assert capsys.readouterr().out.startswith("mine.ipynb: ")
    monkeypatch.setattr("sys.argv", ["notebooks", str(tmp_path / "none.ipynb")])
    assert command.main() == 2
