"""``safeneuron capability``: what is missing in one line, and a table where nothing is."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from tests.app.conftest import Run
from tests.app.test_cli import one_line
from tests.tasks import write_tasks


def test_without_the_extra_it_says_what_to_install(
    run: Run,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("analysis.capability.version", missing)
    assert "pip install 'safeneuron[capability]'" in one_line(run("capability", tiny_llama))


def test_a_table_and_json(
    run: Run,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'capability' is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    tasks = write_tasks(tmp_path / "tasks")
    output = tmp_path / "capability.json"
    asked = ["capability", tiny_llama, "--settings", "ori", "--tasks", "plain,sums"]
    asked += ["--include-path", tasks, "--limit", 3, "-o", output]
    code, out, _ = run(*asked)
    assert code == 0
    assert "plain" in out
    assert "exact_match" in out
    assert "the first 3 questions of each task" in out
    code, out, _ = run(*asked, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["reused"] is True
    assert [(s["task"], s["n"]) for s in told["scores"]] == [("plain", 3), ("sums", 3)]
    assert json.loads(output.read_text("utf-8"))["schema"] == "safeneuron.capability/1"
    assert "is not a folder" in one_line(run(*asked[:-5], tmp_path / "gone"))
