"""What the tests of the command line and of jobs share."""

import subprocess
from collections.abc import Callable, Iterator

import pytest

from app.cli import main
from app.jobs.process import marked
from toolkit.home import home

Run = Callable[..., tuple[int, str, str]]
"""From a command's arguments to its exit code and what it wrote to both outputs."""

Process = subprocess.Popen  # type: ignore[type-arg]


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Processes started by a test; neither they nor what they started outlives it."""
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
    for folder in (home() / "runs").glob("*-*"):
        for left in marked(folder):
            left.kill()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``safeneuron`` in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["safeneuron", *map(str, arguments)])
        capsys.readouterr()  # what a fixture said before, as when it saved a model
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, shown.out, shown.err

    return call
