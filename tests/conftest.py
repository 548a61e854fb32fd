"""Fixtures shared by all tests: a store of their own, and tiny models on disk."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine makes a first call slow; what is slow itself shows in pytest's own timeout.
settings.register_profile("safeneuron", deadline=None)
settings.load_profile("safeneuron")

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def own_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """Give every test a SAFENEURON_HOME of its own, but for those of the embedded model.

    Those share the user's, where the downloaded wheel and its conversion are kept.
    """
    home = tmp_path / "home"
    if request.node.get_closest_marker("embedded") is None:
        monkeypatch.setenv("SAFENEURON_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama folder."""
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("llama"))
