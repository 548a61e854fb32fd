"""What the tests of the command line share."""

from collections.abc import Callable

import pytest

from app.cli import main

Run = Callable[..., tuple[int, str, str]]
"""From a command's arguments to its exit code and what it wrote to both outputs."""


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
