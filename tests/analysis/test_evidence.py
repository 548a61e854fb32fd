"""The page of evidence on a tiny planted model, and its words against its numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.evidence import __main__ as command
from analysis.evidence.gather import Evidence, EvidenceRequest, gather, stored_plan
from analysis.evidence.page import command_of, figures_of, page_text, write_page
from analysis.evidence.words import (
    composition_words,
    crossing_words,
    depth_words,
    kway_words,
    overlap_words,
    p_words,
    redistribution_words,
    scale_words,
)
from analysis.overlap.composition import composition
from analysis.redistribution import Halving, Side, redistribution
from analysis.statistics import wilson
from analysis.store import Store
from tests.topics import TOPICS, save_planted, write_prompts
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> EvidenceRequest:
    folder = tmp_path_factory.mktemp("planted")
    model = save_planted(folder / "planted")
    files = write_prompts(folder)
    return EvidenceRequest(
        model=str(model),
        others=(),
        topics=str(files["topics"]),
        topic_harmless=str(files["harmless"]),
        harmful=f"{files['topics']}[::2]",
        harmless=f"{files['harmless']}[::2]",
        top_es=0.1,
        top_sas=0.1,
        attacked=str(files["attacked"]),
        attacked_harmless=str(files["asked"]),
        steps=4,
        data=(0.5, 1.0),
        align_harmful=str(files["topics"]),
        align_harmless=str(files["harmless"]),
        align_batch=2,
        seeds=1,
        max_new_tokens=4,
        dtype="float32",
        neurostrike=False,
    )


@pytest.fixture(scope="module")
def found(asked: EvidenceRequest, home: Path) -> Evidence:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFENEURON_HOME", str(home))
        return gather(asked)


def test_everything_is_gathered(found: Evidence, asked: EvidenceRequest) -> None:
    assert list(found.topics.masks) == TOPICS
    assert found.kway["k"].tolist() == [2, 3, 4, 5, 6]
    assert list(found.models) == ["planted", "planted, aligned"]
    assert set(found.methods) == {"ES", "SAS"}
    assert set(found.positions) == {"last", "mean", "max"}
    assert found.scale is not None
    assert sorted(set(found.scale["data"])) == [0.0, 0.5, 1.0]
    assert set(found.scale["setting"]) == {"ORI", "ES", "SAS", "FULL", "RANDOM", "AGAIN"}
    assert (found.scale["n"] == 6).all()
    assert found.moved is not None
    assert found.moved.layers["neurons_before"].sum() == len(found.models["planted"])
    assert list(found.curves) == ["before", "before, random", "after", "after, random"]
    kinds = [kind for kind, _ in found.keys]
    assert (kinds.count("identify"), kinds.count("attack")) == (6 + 3 + 1, 3)


def test_a_second_time_runs_no_model(
    found: Evidence, asked: EvidenceRequest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setenv("SAFENEURON_HOME", str(home))
    monkeypatch.setattr("toolkit.models.load.load_weights", refuse)
    again = gather(asked)
    assert again.topics.reused
    assert again.keys == found.keys
    assert page_text(again, links(again)) == page_text(found, links(found))


def links(found: Evidence) -> dict[str, str]:
    return {name: f"images/{name}.png" for name in figures_of(found)}


def test_the_page_shows_every_figure_and_its_words(found: Evidence, tmp_path: Path) -> None:
    files = write_page(found, tmp_path / "analysis.md", ".html")
    text = files[-1].read_text("utf-8")
    for path in files[:-1]:
        assert path.is_file()
        assert f"(images/{path.name})" in text
    names = {path.stem for path in files[:-1]}
    assert names == {
        f"analysis-{name}"
        for name in ("composition", "depth", "kway", "overlap-es-sas", "data", "removal")
    } | {"analysis-redistribution"}
    for sentence in composition_words(found.classes) + kway_words(found.kway):
        assert f"- {sentence}" in text
    totals = found.classes.totals()
    assert f"| core | {totals['neurons'].iloc[0]} |" in text
    assert f"```\n{command_of(found.request)}\n```" in text
    assert "nan" not in text
    assert str(tmp_path) not in text


def test_the_page_without_alignment(found: Evidence) -> None:
    alone = replace(found, scale=None, moved=None)
    assert set(figures_of(alone)) == {"composition", "depth", "kway", "overlap-es-sas", "removal"}
    assert "No alignment was asked for" in page_text(alone, links(alone))


def test_figures_draw_the_tables(found: Evidence) -> None:
    drawn = figures_of(found)
    layers = found.classes.layers
    bars = {trace.name.split(":")[0]: trace for trace in drawn["composition"].data}
    for name in ("core", "shared", "specific"):
        assert list(bars[name].y) == pytest.approx(100 * layers[f"{name}_share"], nan_ok=True)
    stacked = sum(np.nan_to_num(bars[name].y) for name in ("core", "shared", "specific"))
    assert stacked == pytest.approx(np.where(layers["core_share"].notna(), 100, 0))
    line = next(t for t in drawn["kway"].data if t.name.startswith("in all K"))
    assert list(line.y) == pytest.approx(100 * found.kway["ratio"])
    chance = next(t for t in drawn["kway"].data if t.name == "by chance")
    assert list(chance.y) == pytest.approx(100 * found.kway["ratio_chance"])
    heat = drawn["depth"].data[0]
    assert list(heat.y) == list(found.models)
    neurons = found.models["planted"]
    assert heat.z[0][0] == pytest.approx(100 * len(neurons.layer(0)) / 64)
    assert heat.z[0][-1] == pytest.approx(100 * len(neurons.layer(2)) / 64)
    assert found.scale is not None
    for trace in drawn["data"].data:
        rows = found.scale[found.scale["setting"] == trace.name].sort_values("data")
        assert list(trace.y) == pytest.approx(100 * rows["success"])
        assert list(trace.error_y.array) == pytest.approx(
            100 * (rows["success_high"] - rows["success"])
        )
    assert found.moved is not None
    for trace in drawn["redistribution"].data:
        assert list(trace.y) == pytest.approx(100 * found.moved.layers[f"share_{trace.name}"])


def test_the_command_makes_the_page_again(
    asked: EvidenceRequest, found: Evidence, home: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import shlex

    monkeypatch.setenv("SAFENEURON_HOME", str(home))
    words = shlex.split(command_of(asked))[3:]
    output = tmp_path / "docs" / "analysis.md"
    monkeypatch.setattr("sys.argv", ["x", *words, "-o", str(output), "--figures", ".html"])
    assert command.main() == 0
    assert str(output) in capsys.readouterr().out
    assert command_of(asked) in output.read_text("utf-8")
    monkeypatch.setattr("sys.argv", ["x", "--data", "2", "-o", str(output)])
    assert command.main() == 2
    assert capsys.readouterr().err.startswith("safeneuron: data.0 '2'")


def test_the_neurons_of_a_remembered_setting(tmp_path: Path) -> None:
    store = Store(tmp_path)
    facts = {"fingerprint": "f", "widths": [4, 3]}
    store.save("identify", {"x": 1}, "t", facts, lambda folder: (folder / "a").touch())
    plans = [{"steps": [{"neurons": {"0": [1]}}, {"neurons": {"1": [2]}}]}]
    store.save(
        "plan",
        {"setting": "NEUROSTRIKE", "fingerprint": "f"},
        "t",
        {},
        lambda folder: (folder / "plans.json").write_text(json.dumps(plans)) and None,
    )
    assert stored_plan(store, "f", "NEUROSTRIKE") == NeuronSet([4, 3], {0: [1], 1: [2]})
    assert stored_plan(store, "g", "NEUROSTRIKE") is None
    assert stored_plan(store, "f", "TWINBREAK") is None


# --- Words -------------------------------------------------------------------------------


def topics_of(chosen: dict[str, dict[int, list[int]]], layers: int = 6) -> dict[str, NeuronSet]:
    return {name: NeuronSet([40] * layers, found) for name, found in chosen.items()}


def test_words_of_a_composition_follow_its_numbers() -> None:
    shared = topics_of({t: {n: [*range(n + 1), 20 + i] for n in range(6)} for i, t in
                        enumerate("abc")})  # fmt: skip
    told = composition_words(composition(shared))
    assert "21 neurons are core, 0 shared and 18 specific" in told[0]
    assert "54% are in more than one" in told[0]
    # Core is 1 of 4 in the first layer, 2 of 5, 3 of 6, then a majority: 3 of 6 layers.
    assert "majority in 3 of the 6 layers" in told[1]
    assert "unlike the paper" in told[1]
    assert "rises with depth (rank correlation 1.00" in told[2]
    assert "as the paper says" in told[2]
    apart = topics_of({t: {n: [10 * i + n] for n in range(6)} for i, t in enumerate("abc")})
    told = composition_words(composition(apart))
    assert "0 neurons are core" in told[0]
    assert "0% are in more than one" in told[0]
    assert "majority in 0 of the 6 layers that have any, unlike the paper" in told[1]


def test_words_of_depth() -> None:
    late = NeuronSet([10] * 6, {5: [1, 2], 3: [4]})
    told = depth_words({"late": late})
    assert told[0].startswith("late: 0.00% of the neurons in the first third")
    assert "mean depth 0.87: no clear difference between early and later" in told[0]
    told = depth_words({name: NeuronSet([100] * 6, {n: range(20) for n in where})
                        for name, where in (("late", (3, 4, 5)), ("early", (0, 1)))})  # fmt: skip
    assert told[0].endswith("sparser early than later (p < 0.0001), as the paper says.")
    assert told[1].endswith("denser early than later (p < 0.0001), unlike the paper.")
    assert "mean depth 0.10" in told[1]
    assert "20.00% of the neurons in the first third" in told[1]


def kway_of(ratios: list[float], chance: list[float]) -> pd.DataFrame:
    ks = range(2, 2 + len(ratios))
    return pd.DataFrame({"k": ks, "ratio": ratios, "ratio_chance": chance})


def test_words_of_k_sets() -> None:
    told = kway_words(kway_of([0.5, 0.3, 0.28], [0.01, 1e-4, 1e-6]))
    assert "28.0% for all 4" in told[0]
    assert "2.8e+05 times" in told[0]
    # A curve that goes to nothing, as chance does, has small steps and has not settled.
    sinking = kway_words(kway_of([0.01, 1e-4, 1e-6], [0.01, 1e-4, 1e-6]))
    assert "takes 99% of what was left, the first took 99%, so it has not settled" in sinking[1]
    assert "chance does not explain, as the paper says" in told[0]
    assert "falls at every step; the last step takes 7% of what was left, the first" in told[1]
    assert "has settled, as the paper says" in told[1]
    told = kway_words(kway_of([0.02, 0.01, 0.0], [0.02, 0.001, 1e-4]))
    assert "no more than chance, unlike the paper" in told[0]
    assert "the last step takes 100% of what was left" in told[1]
    assert "has not settled with 4 topics" in told[1]


def scale_of(first: int, last: int) -> pd.DataFrame:
    rows = [
        {"setting": "FULL", "data": data, "k_success": k, "n": 100}
        | {"outcomes": [1.0] * k + [0.0] * (100 - k)}
        for data, k in ((0.0, first), (1.0, last))
    ]
    return pd.DataFrame(rows)


def test_words_of_the_data() -> None:
    (told,) = scale_words(scale_of(80, 20))
    assert told.startswith(f"FULL: {wilson(80, 100)} without the training, {wilson(20, 100)} with")
    assert "fewer (p < 0.0001), as the paper says" in told
    (told,) = scale_words(scale_of(20, 80))
    assert "more (p < 0.0001), unlike the paper" in told
    # Two more of the same prompts, none fewer.
    (told,) = scale_words(scale_of(20, 22))
    assert "no clear change (p = 0." in told
    assert "which neither shows nor refutes" in told
    # Of six settings alike, each has to be six times as clear.
    several = pd.concat([scale_of(20, 27).assign(setting=name) for name in "ABCDEF"])
    (alone,) = scale_words(scale_of(20, 27))
    assert "more (p = 0.0" in alone
    assert all("no clear change" in line for line in scale_words(several))


def test_words_of_an_overlap() -> None:
    one = NeuronSet([100, 100], {0: range(10), 1: range(10)})
    other = NeuronSet([100, 100], {0: range(10), 1: range(50, 60)})
    told = overlap_words(("A", "B"), one, other)
    assert "share 10, where chance gives 2.0" in told
    assert "more than chance (p < 0.0001" in told
    assert "In 1 of the 2 layers" in told
    far = NeuronSet([100, 100], {0: range(50, 60), 1: range(50, 60)})
    assert "no clear difference from chance" in overlap_words(("A", "B"), one, far)
    halves = [NeuronSet([100], {0: range(50)}), NeuronSet([100], {0: range(50, 100)})]
    assert "fewer than chance" in overlap_words(("A", "B"), *halves)


def test_words_of_what_moved() -> None:
    scores = pd.DataFrame({"layer": [0] * 20, "neuron": range(20), "sas": [1.0] * 20})
    before = Side("before", scores, NeuronSet([20], {0: range(10)}))
    after = Side("after", scores, NeuronSet([20], {0: range(5, 20)}))
    moved = redistribution(before, after)
    told = redistribution_words(moved)
    assert "10.0 effective neurons" in told[0]
    assert "15.0 and 1.0: 50% more in neurons, about as many in layers" in told[0]
    assert "5 of the 10 neurons stayed (50%), 5 left and 10 joined" in told[1]
    fragile, sturdy = Halving(50, 40, 60, 900, 0.9), Halving(None, 700, None, 900, 0.9)
    said = redistribution_words(replace(moved, halving=(fragile, sturdy)))
    assert "50 [40, 60] before, not reached by 900 [700, > 900] after" in said[2]
    assert said[3].startswith("The aligned model takes clearly more removals to lose half of its")
    assert "refuses 90%, where the one before refuses 90%" in said[3]
    said = redistribution_words(replace(moved, halving=(sturdy, fragile)))
    assert said[3].startswith("The aligned model takes clearly fewer removals")
    wide = Halving(100, 30, None, 900, 0.9)
    said = redistribution_words(replace(moved, halving=(fragile, wide), control=(sturdy, sturdy)))
    assert "neither is shown to take more" in said[3]
    assert said[4].startswith("The same with random neurons: not reached by 900")
    nothing = Halving(None, None, None, 900, 0.0)
    said = redistribution_words(replace(moved, halving=(nothing, wide)))
    assert said[3] == "One of the two refuses nothing, so there is nothing to halve."


def test_p_values_in_words() -> None:
    assert [p_words(p) for p in (0.0432, 1e-9, 1.0)] == ["p = 0.043", "p < 0.0001", "p = 1"]


def test_evidence_needs_topics(asked: EvidenceRequest, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(["a", "b"]), "utf-8")
    with pytest.raises(SafeNeuronError, match="has 0 topics"):
        gather(asked.model_copy(update={"topics": str(tmp_path / "one.json")}))


def test_where_the_curves_cross_is_said() -> None:
    def curve(refused: list[int]) -> pd.DataFrame:
        rows = {"neurons": [0, 10, 50], "n": [20] * 3, "k_refused": refused}
        return pd.DataFrame(rows).assign(refused=lambda t: t["k_refused"] / t["n"])

    before = curve([18, 12, 4])
    # Whole, it is not a matter of removal.
    assert crossing_words(before, curve([17, 12, 5])) == []
    (told,) = crossing_words(before, curve([20, 9, 4]))
    assert f"at 10 ({wilson(9, 20)} against {wilson(12, 20)})." in told
    assert "50 (" not in told
