"""Pinned wheels: checked, unpacked once, never half there. pip is replaced by a copy."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from toolkit import wheels
from toolkit.errors import SafeNeuronError
from toolkit.files import sha256_file
from toolkit.wheels import PinnedWheel, fetch_member


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("thing/data.txt", "hello")
    return path


class Pip:
    """Stands for ``pip download``: copies the archive, or fails as pip does."""

    def __init__(self, archive: Path, error: str | None = None) -> None:
        self.archive, self.error, self.calls = archive, error, 0

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        target = Path(command[command.index("--dest") + 1]) / self.archive.name
        target.write_bytes(self.archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


def test_fetched_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(archive)
    monkeypatch.setattr(wheels.subprocess, "run", pip)
    wheel = PinnedWheel("thing", "1", sha256_file(archive), "MIT")
    for _ in range(2):
        assert fetch_member(wheel, "thing/data.txt").read_text("utf-8") == "hello"
    assert pip.calls == 1


def test_another_file_is_refused(
    archive: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    monkeypatch.setattr(wheels.subprocess, "run", Pip(archive))
    with pytest.raises(SafeNeuronError, match="not the pinned"):
        fetch_member(PinnedWheel("thing", "1", "0" * 64, "MIT"), "thing/data.txt")
    assert not list(own_home.rglob("data.txt"))


def test_pip_fails(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = "WARNING: retrying\nERROR: No matching distribution found for thing==1\n"
    monkeypatch.setattr(wheels.subprocess, "run", Pip(archive, error))
    with pytest.raises(SafeNeuronError, match=r"No matching distribution.*network"):
        fetch_member(PinnedWheel("thing", "1", "0" * 64, "MIT"), "thing/data.txt")


def test_no_such_member(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.subprocess, "run", Pip(archive))
    wheel = PinnedWheel("thing", "1", sha256_file(archive), "MIT")
    with pytest.raises(SafeNeuronError, match="has no file"):
        fetch_member(wheel, "thing/other.txt")
