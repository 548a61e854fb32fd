"""``safeneuron export`` and ``safeneuron figure`` from files, and bad input in one line."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.analysis.test_redistribution import swept
from tests.app.conftest import Run
from tests.app.test_overlap import masks
from tests.masks import mask_file
from toolkit.neurons import NeuronSet

__all__ = ["masks"]


@pytest.fixture
def attack(tmp_path: Path) -> Path:
    path = tmp_path / "attack.json"
    result = swept({0: 40, 50: 30, 100: 10}, 40)
    path.write_text(result.model_dump_json(by_alias=True), "utf-8")
    return path


def test_masks(run: Run, masks: list[str], tmp_path: Path) -> None:
    for name, form in (("m.csv", None), ("m.safetensors", None), ("m.py", "nnsight")):
        flags = ["--format", form] if form else []
        code, _, err = run("export", masks[0], "-o", tmp_path / name, *flags)
        assert code == 0, err
        assert (tmp_path / name).is_file()
    assert len(pd.read_csv(tmp_path / "m.csv")) == 4


def test_attacks_and_scores(run: Run, attack: Path, tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet", "a.md", "a.html", "a.json"):
        code, _, err = run("export", attack, "-o", tmp_path / name, "--json")
        assert code == 0, err
    assert "SWEEP 100" in (tmp_path / "a.md").read_text("utf-8")
    assert "SWEEP 100" in (tmp_path / "a.html").read_text("utf-8")
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(attack.read_text())
    scores = tmp_path / "scores.parquet"
    pd.DataFrame({"layer": [0, 0], "neuron": [1, 0], "es": [1.0, 2.0]}).to_parquet(scores)
    assert run("export", scores, "-o", tmp_path / "s.csv")[0] == 0
    assert pd.read_csv(tmp_path / "s.csv")["es"].tolist() == [2.0, 1.0]


def test_figures(run: Run, masks: list[str], attack: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.parquet"
    table = pd.DataFrame({"layer": [0] * 10 + [1] * 10, "neuron": [*range(10)] * 2})
    table.assign(es=1.0, sas=table["neuron"], delta=0.5).to_parquet(scores)
    for name, inputs in (
        ("map", [masks[0], scores]),
        ("layers", masks[:1]),
        ("composition", masks),
        ("kway", masks),
        ("depth", masks),
        ("overlap", masks[:2]),
        ("attack", [attack]),
        ("compare", [attack]),
        ("curves", [attack]),
    ):
        code, _, err = run("figure", name, *inputs, "-o", tmp_path / f"drawn-{name}.json")
        assert code == 0, (name, err)
        assert json.loads((tmp_path / f"drawn-{name}.json").read_text())["data"], name


def test_bad_input_is_one_line(run: Run, masks: list[str], attack: Path, tmp_path: Path) -> None:
    other = mask_file(tmp_path / "other.json", NeuronSet([10], {0: [1]}))
    for arguments, told in (
        (["export", masks[0], "-o", tmp_path / "m.py"], "say which --format"),
        (["export", attack, "-o", tmp_path / "a.safetensors"], "an attack has no safetensors form"),
        (["export", attack, "-o", tmp_path / "a.txt", "--format", "csv"], "of the format csv .csv"),
        (["export", tmp_path / "none", "-o", tmp_path / "m.csv"], "cannot read the mask"),
        (["figure", "overlap", masks[0], masks[0], "-o", tmp_path / "f.png"], "of two masks"),
        (["figure", "kway", masks[0], "-o", tmp_path / "f.json"], "at least two sets"),
        (["figure", "composition", masks[0], other, "-o", tmp_path / "f.json"], "one shape"),
        (["figure", "layers", masks[0], "-o", tmp_path / "f.gif"], "name a figure .png"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert len(err.strip().splitlines()) == 1
        assert told in err, err
