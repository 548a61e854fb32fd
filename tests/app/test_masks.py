"""``safeneuron masks`` and the figures of maps: what the pages do, at the command line."""

import json
from pathlib import Path

import pytest

from tests.app.conftest import Run
from tests.app.test_pages import fill
from tests.masks import mask_file
from toolkit.masks import read_mask
from toolkit.neurons import NeuronSet


@pytest.fixture
def masks(tmp_path: Path) -> list[str]:
    sets = [NeuronSet([10, 10], {0: ids, 1: [0]}) for ids in ([1, 2, 3], [2, 3, 4])]
    return [mask_file(tmp_path / f"{n}.json", each) for n, each in enumerate(sets)]


@pytest.mark.parametrize(
    ("operation", "count"), [("union", 5), ("intersection", 3), ("difference", 1)]
)
def test_combine(run: Run, masks: list[str], operation: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    code, out, err = run("masks", "combine", operation, *masks, "-o", path)
    assert code == 0, err
    assert read_mask(path).count == count
    assert str(path) in out


def test_the_library_by_hash(run: Run, masks: list[str]) -> None:
    for mask in masks:
        assert run("masks", "import", mask)[0] == 0
    listed = json.loads(run("masks", "--json")[1])
    assert {row["from"] for row in listed} == {"kept"}
    names = [row["mask"] for row in listed]
    made = json.loads(run("masks", "combine", "union", *names, "--json")[1])
    assert made["neurons"] == 5
    assert run("masks", "rm", made["mask"])[0] == 0
    assert len(json.loads(run("masks", "--json")[1])) == 2
    code, _, err = run("masks", "rm", "ffff")
    assert (code, "lists them" in err) == (2, True)


def test_neurons_by_hand(run: Run, masks: list[str], tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    code, _, err = run("masks", "edit", masks[0], "--add", "1:9", "--take", "0:1", "-o", path)
    assert code == 0, err
    assert list(read_mask(path).neuron_set()) == [(0, 2), (0, 3), (1, 0), (1, 9)]
    told = json.loads(run("masks", "edit", masks[0], "--add", "0:7", "--working", "--json")[1])
    assert told["neurons"] == 1
    code, _, err = run("masks", "edit", masks[0], "--add", "seven")
    assert code == 2
    assert "LAYER:NEURON" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("map", "MASK", "SCORES", "--score", "es", "--layer", "1"),
        ("difference", "SCORES", "SCORES", "--score", "es:t"),
        ("success", "ATTACK"),
        ("matrix", "MASK", "SCORES#es", "SCORES#t"),
    ],
)
def test_figures_of_the_pages(run: Run, arguments: tuple[str, ...], tmp_path: Path) -> None:
    study, attack = fill()
    files = {"MASK": study.file("mask.json"), "SCORES": study.file("scores.parquet")}
    files["ATTACK"] = attack.file("attack.json")
    named = [
        str(files[word.split("#")[0]]) + word[len(word.split("#")[0]) :]
        if word.split("#")[0] in files
        else word
        for word in arguments
    ]
    path = tmp_path / "figure.json"
    code, _, err = run("figure", *named, "-o", path)
    assert code == 0, err
    assert json.loads(path.read_text("utf-8"))["data"]


def test_a_layer_that_is_not_there(run: Run, tmp_path: Path) -> None:
    study, _ = fill()
    files = (study.file("mask.json"), study.file("scores.parquet"))
    code, _, err = run("figure", "map", *files, "--layer", 3, "-o", tmp_path / "f.json")
    assert code == 2
    assert "no layer 3" in err
