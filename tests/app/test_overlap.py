"""``safeneuron overlap``: what it prints, and bad input in one line."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.app.conftest import Run
from tests.masks import mask_file
from toolkit.neurons import NeuronSet


@pytest.fixture
def masks(tmp_path: Path) -> list[str]:
    chosen = ([1, 2, 3], [2, 3, 4], [3, 9])
    sets = [NeuronSet([10, 10], {0: ids, 1: [0]}) for ids in chosen]
    return [mask_file(tmp_path / f"{n}.json", each) for n, each in enumerate(sets)]


def test_two_masks(run: Run, masks: list[str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    code, out, err = run("overlap", *masks[:2], "--by-layer", "--table", path)
    assert code == 0, err
    assert "3 (1.0)" in out  # 3 * 3 / 10 + 1 / 10 by chance
    assert "0.6000" in out
    table = pd.read_csv(path)
    assert table["both"].tolist() == [3, 2, 1]
    assert table["jaccard"].tolist() == pytest.approx([0.6, 0.5, 1.0])


def test_three_masks_as_json(run: Run, masks: list[str]) -> None:
    code, out, _ = run("overlap", *masks, "--json")
    told = json.loads(out)
    assert code == 0
    assert [pair["both"] for pair in told["pairs"]] == [3, 2, 2]
    assert [row["k"] for row in told["kway"]] == [2, 3]
    assert told["kway"][1]["ratio"] == pytest.approx(2 / 6)
    classes = {row["class"]: row["neurons"] for row in told["composition"]}
    assert classes == {"core": 2, "shared": 1, "specific": 3}
    assert 0 < told["p_core"] < 1
    code, out, _ = run("overlap", *masks)
    assert "in all (core), in several (shared), in one" in out


def test_scores_get_their_rank_correlation(run: Run, tmp_path: Path) -> None:
    table = pd.DataFrame({"layer": [0] * 10, "neuron": range(10), "es": range(10)})
    table = table.assign(sas=[0, 1, 2, 3, 4, 5, 6, 7, 9, 8], same=1.0)
    path = tmp_path / "scores.parquet"
    table.to_parquet(path)
    code, out, _ = run("overlap", f"{path}#es", f"{path}#sas", "--json")
    assert code == 0
    assert json.loads(out)["ranks"][0]["rho"] == pytest.approx(1 - 6 * 2 / 990)
    code, out, err = run("overlap", f"{path}#es", f"{path}#same")
    assert (code, out) == (2, "")
    assert "is the same for every neuron, so it ranks none of them" in err


def test_bad_input_is_one_line(run: Run, masks: list[str], tmp_path: Path) -> None:
    other = mask_file(tmp_path / "other.json", NeuronSet([10], {0: [1]}))
    empty = mask_file(tmp_path / "empty.json", NeuronSet.empty([10, 10]))
    for arguments, told in (
        ([masks[0]], "at least two masks"),
        ([masks[0], other], "overlap needs one shape"),
        ([masks[0], empty], "names no neurons"),
        ([masks[0], f"{masks[1]}#es"], "does not say which neurons ES chose"),
        ([masks[0], masks[1], "--table", tmp_path / "x.txt"], "name a table .csv"),
    ):
        code, out, err = run("overlap", *arguments)
        assert (code, out) == (2, ""), arguments
        assert len(err.strip().splitlines()) == 1
        assert told in err
