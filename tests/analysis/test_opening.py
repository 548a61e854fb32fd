"""A study as DataFrames: quick, without torch, and never from a file that was changed."""

import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import open_study
from analysis.opening import Study, export_entry
from analysis.store import About, Entry, Store
from analysis.tables import write_parquet
from tests.analysis.test_store import newer_manifest
from tests.masks import make_mask
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet


def score_frame(layers: int, width: int, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    place = {
        "layer": np.repeat(np.arange(layers, dtype=np.int32), width),
        "neuron": np.tile(np.arange(width, dtype=np.int32), layers),
    }
    names = ("mean_harmful", "mean_harmless", "pooled_std", "delta", "es", "sas")
    return pd.DataFrame(place | {name: generator.normal(size=layers * width) for name in names})


def save_scores(store: Store, table: pd.DataFrame, recipe: dict[str, Any]) -> Entry:
    layers = int(table["layer"].max()) + 1
    widths = [len(table) // layers] * layers

    def write(folder: Path) -> None:
        write_parquet(table, folder / "scores.parquet")
        make_mask(NeuronSet(widths, {0: [1, 3]})).write(folder / "mask.json")

    about = About("tiny", "9 of h against 9 of s", "es (top 0.01)")
    return store.save("identify", recipe, "safety neurons of tiny", {}, write, about)


def fill(store: Store, count: int) -> None:
    """Small entries of several kinds, as a year of use leaves them."""

    def write(folder: Path) -> None:
        (folder / "attack.txt").write_text("x" * 500)

    for n in range(count):
        recipe = {"n": n, "model": "a" * 64, "parameters": {"top": 0.01}}
        store.save(("identify", "plan", "redteam")[n % 3], recipe, f"entry {n}", {"n": n}, write)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    store = Store(tmp_path / "home" / "store")
    save_scores(store, score_frame(4, 50), {"n": 1})
    fill(store, 3)
    return open_study(tmp_path / "home")


def test_tables(study: Study) -> None:
    assert len(study.entries) == 4
    found = study.entries.set_index("what").loc["safety neurons of tiny"]
    assert (found["model"], found["prompts"]) == ("tiny", "9 of h against 9 of s")
    table = score_frame(4, 50)
    pd.testing.assert_frame_equal(study.scores(), table)
    part = study.scores(layer=2, columns=["es"])
    pd.testing.assert_frame_equal(
        part, table.loc[table["layer"] == 2, ["layer", "neuron", "es"]].reset_index(drop=True)
    )
    top = study.top(2, 5)
    expected = table[table["layer"] == 2].nlargest(5, "es")["neuron"]
    assert top["neuron"].tolist() == expected.tolist()
    assert study.top(2, 5, "sas")["sas"].is_monotonic_decreasing
    assert study.mask().count == 2
    assert study.attacks().empty
    assert repr(study).endswith("4 results)")


def test_what_is_not_there(study: Study, tmp_path: Path) -> None:
    for call, told in (
        (lambda: study.scores(layer=9), "no neurons in layer 9"),
        (lambda: study.scores(columns=["nosuch"]), "not all of the columns nosuch"),
        (lambda: study.top(1, score="nosuch"), "no score 'nosuch'; choose one of mean_harm"),
        (lambda: study.scores("nosuch"), "no result with scores.parquet whose key begins"),
        (lambda: open_study(tmp_path / "nosuch"), "the folder does not exist"),
        (lambda: open_study(tmp_path), "holds no results"),
    ):
        with pytest.raises(SafeNeuronError, match=told) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_changed_file_is_not_read(study: Study) -> None:
    assert len(study.scores()) == 200
    path = study.entry().file("scores.parquet")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(SafeNeuronError, match="not as it was written"):
        study.scores(layer=1)


def test_a_store_of_a_newer_version(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = save_scores(store, score_frame(2, 5), {"n": 1})
    newer_manifest(entry)
    with pytest.raises(SafeNeuronError, match=r"newer version .* update safeneuron"):
        open_study(tmp_path)


def test_export_of_an_entry(study: Study, tmp_path: Path) -> None:
    entry = study.entry()
    export_entry(study.store, entry, tmp_path / "copy")
    export_entry(study.store, entry, tmp_path / "copy.zip")
    names = {"manifest.json", "scores.parquet", "mask.json"}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names
    with zipfile.ZipFile(tmp_path / "copy.zip") as archive:
        assert set(archive.namelist()) == names
        assert archive.read("mask.json") == entry.file("mask.json").read_bytes()
    with pytest.raises(SafeNeuronError, match="is there already"):
        export_entry(study.store, entry, tmp_path / "copy")
    # A copy put into another store reads as it did here.
    there = tmp_path / "other" / "identify" / entry.key
    there.parent.mkdir(parents=True)
    (tmp_path / "copy").rename(there)
    assert len(open_study(tmp_path / "other").scores()) == 200


WITHOUT_TORCH = """
import sys, time
import analysis
study = analysis.open_study(sys.argv[1])
study.entries, study.scores(), study.mask(), study.top(1, 3), study.attacks()
import analysis.overlap.pairs, analysis.figures
sys.exit("torch" in sys.modules)
"""


def test_reading_a_study_never_imports_torch(study: Study) -> None:
    """Must hold 6."""
    command = [sys.executable, "-c", WITHOUT_TORCH, str(study.store.root)]
    assert subprocess.run(command, check=False).returncode == 0


def test_a_large_store_answers_at_once(tmp_path: Path) -> None:
    """Must hold 5, with room for a busy machine; the benchmark bench_store holds it to 1 s."""
    store = Store(tmp_path)
    fill(store, 199)
    save_scores(store, score_frame(80, 28_672), {"n": "large"})
    start = time.perf_counter()
    study = open_study(tmp_path)
    listed = study.entries
    top = study.top(40, 100)
    seconds = time.perf_counter() - start
    assert (len(listed), len(top)) == (200, 100)
    assert (top["layer"] == 40).all()
    assert seconds < 5
