"""Identify by any score: all on one table, each remembered, one's own beside them."""

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.identify import identify
from analysis.requests import IdentifyRequest
from analysis.scores import all_scores, registry, score
from analysis.store import Store
from tests.tiny import HARMFUL, HARMLESS, save_tiny
from toolkit.capture.activations import capture_activations
from toolkit.capture.hooks import HooksBackend
from toolkit.errors import SafeNeuronError
from toolkit.models.load import load_model


@pytest.fixture
def asked(tiny_llama: Path, tmp_path: Path) -> IdentifyRequest:
    sides = {"harmful": HARMFUL[:8], "harmless": HARMLESS[:8], "utility": HARMLESS[8:]}
    for name, prompts in sides.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(prompts), "utf-8")
    return IdentifyRequest(
        model=str(tiny_llama),
        harmful=str(tmp_path / "harmful.json"),
        harmless=str(tmp_path / "harmless.json"),
        top=0.1,
        answer_tokens=4,
    )


def change(request: IdentifyRequest, **values: Any) -> IdentifyRequest:
    return IdentifyRequest.model_validate(request.model_dump() | values)


@pytest.fixture
def own_scores() -> Iterator[None]:
    """Whatever a test registers is gone afterwards."""
    before = dict(registry._REGISTERED)
    yield
    registry._REGISTERED.clear()
    registry._REGISTERED.update(before)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    def forbid() -> None:
        def load(*_: object, **__: object) -> None:
            raise AssertionError("a model was loaded")

        monkeypatch.setattr("toolkit.models.load.load_model", load)

    return forbid


def test_every_score_lands_on_one_table_and_is_remembered(
    asked: IdentifyRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_model: Any
) -> None:
    # A random model's refusal direction is no direction of its own.
    monkeypatch.setattr("analysis.attacks.refusal_direction.KL_LIMIT", float("inf"))
    base = save_tiny(tmp_path / "base", seed=1)
    names = list(all_scores())
    wanted = change(
        asked,
        base=str(base),
        utility=str(tmp_path / "utility.json"),
        also=[*names, "snip@utility", "snip@contrast", "t@contrast"],
        method="snip-utility",
    )
    found = identify(wanted)
    assert not found.reused
    table = pd.read_parquet(found.entry.file("scores.parquet"))
    assert len(table) == 192
    assert {*names, "snip@utility", "snip@contrast", "t_p", "auc_p"} <= set(table.columns)
    assert not table[names].isna().any().any()
    np.testing.assert_array_equal(table["snip@contrast"], table["snip"] - table["snip@utility"])
    # The mask: the best 19 by SNIP on harmful prompts, less the best 19 on the others.
    best = [set(table.nlargest(19, name).index) for name in ("snip", "snip@utility")]
    mask = np.concatenate(found.mask.neuron_set().masks())
    assert set(np.flatnonzero(mask)) == best[0] - best[1]
    assert found.mask.method.parameters["utility"]
    stored = Store().entries("score")
    assert {entry.summary["name"] for entry in stored} >= {*names, "snip@utility"}

    no_model()
    assert identify(wanted).reused
    # Another method over the same scores: nothing is measured.
    other = identify(change(wanted, method="t&auc", top=None, fdr=0.2, tau={}, also=["snip"]))
    assert other.reused
    p = pd.read_parquet(other.entry.file("scores.parquet"))
    assert {"t_p", "auc_p", "snip"} <= set(p.columns)


def test_one_s_own_score_in_ten_lines(
    asked: IdentifyRequest, own_scores: None, no_model: Any
) -> None:
    @score("spread", reads="activations")
    def spread(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
        return harmful.std(axis=0) - harmless.std(axis=0)

    found = identify(change(asked, method="spread+es"))
    table = pd.read_parquet(found.entry.file("scores.parquet"))
    loaded = load_model(asked.model)
    sides = [
        np.concatenate(capture_activations(loaded, HooksBackend(loaded), texts, "last"), axis=1)
        for texts in (HARMFUL[:8], HARMLESS[:8])
    ]
    expected = sides[0].std(axis=0) - sides[1].std(axis=0)
    np.testing.assert_allclose(table["spread"], expected, rtol=1e-3, atol=1e-6)
    assert set(found.mask.parts) == {"spread", "es"}

    # Written anew under its name it is another score, and the activations are still there.
    @score("spread", reads="activations")
    def wider(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
        return 2 * (harmful.std(axis=0) - harmless.std(axis=0))

    no_model()
    again = identify(change(asked, method="spread+es"))
    assert again.reused
    doubled = pd.read_parquet(again.entry.file("scores.parquet"))["spread"]
    np.testing.assert_allclose(doubled, 2 * table["spread"])


def test_a_package_brings_scores(monkeypatch: pytest.MonkeyPatch, own_scores: None) -> None:
    def points(group: str) -> list[EntryPoint]:
        return [EntryPoint("theirs", "tests.analysis.brought_scores", group)]

    monkeypatch.setattr(registry, "entry_points", points)
    monkeypatch.setattr(registry, "_asked_packages", False)
    assert all_scores()["loudness"].reads == "moments"

    def broken(group: str) -> list[EntryPoint]:
        return [EntryPoint("theirs", "no_such_module_anywhere", group)]

    monkeypatch.setattr(registry, "entry_points", broken)
    monkeypatch.setattr(registry, "_asked_packages", False)
    with pytest.raises(SafeNeuronError, match="can't be loaded"):
        all_scores()


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda a, b: np.zeros(3), r"gave shape \(3,\) for layer 0; .* its 64 neurons"),
        (lambda a, b: np.full(64, np.nan), "is NaN for 64 of the 64 neurons of layer 0, neuron 0"),
    ],
)
def test_scores_that_give_no_numbers(
    asked: IdentifyRequest, own_scores: None, function: Any, why: str
) -> None:
    score("odd", reads="moments")(function)
    with pytest.raises(SafeNeuronError, match=why):
        identify(change(asked, method="odd"))


def test_names_that_can_t_be_registered(own_scores: None) -> None:
    with pytest.raises(SafeNeuronError, match="there is a score es already"):
        score("es", reads="moments")(lambda a, b: a)
    for name in ("Spread", "a-b", "utility", ""):
        with pytest.raises(SafeNeuronError, match="can't name a score"):
            score(name, reads="moments")
    with pytest.raises(SafeNeuronError, match="reads 'tea'"):
        score("mine", reads="tea")  # type: ignore[arg-type]


def test_moments_of_kept_activations_are_the_streamed_ones(
    asked: IdentifyRequest, tmp_path: Path
) -> None:
    streamed = identify(asked, store=Store(tmp_path / "a"))
    kept = identify(change(asked, also=["auc"]), store=Store(tmp_path / "b"))
    tables = [pd.read_parquet(e.entry.file("scores.parquet")) for e in (streamed, kept)]
    np.testing.assert_allclose(
        tables[0][["es", "sas", "t"]], tables[1][["es", "sas", "t"]], rtol=1e-5, atol=1e-7
    )
    assert streamed.mask.neurons == kept.mask.neurons


def test_intervals_over_prompts(asked: IdentifyRequest, no_model: Any) -> None:
    wanted = change(asked, bootstrap=50, also=["auc"])
    table = pd.read_parquet(identify(wanted).entry.file("scores.parquet"))
    for name in ("es", "sas", "auc"):
        assert (table[f"{name}_low"] <= table[f"{name}_high"]).all()
        inside = (table[f"{name}_low"] <= table[name]) & (table[name] <= table[f"{name}_high"])
        assert inside.mean() > 0.9
    no_model()
    assert identify(wanted).reused
    with pytest.raises(SafeNeuronError, match="snip has no bootstrap"):
        identify(change(wanted, method="snip"))


def test_prompts_on_which_nothing_varies(asked: IdentifyRequest, tmp_path: Path) -> None:
    sides = {"harmful": "Hi", "harmless": "Ho"}
    for side, prompt in sides.items():
        (tmp_path / f"{side}.json").write_text(json.dumps([prompt] * 4), "utf-8")
    with pytest.raises(SafeNeuronError, match="no neuron varies from prompt to prompt"):
        identify(change(asked, **{side: str(tmp_path / f"{side}.json") for side in sides}))


def test_activations_that_are_not_finite(asked: IdentifyRequest, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "broken")
    loaded = load_model(str(folder))
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.up_proj.weight[3, 0] = float("nan")
    loaded.model.save_pretrained(folder)
    for method in ("es", "auc"):
        with pytest.raises(SafeNeuronError, match="activations of layer 1 are not finite"):
            identify(change(asked, model=str(folder), method=method))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"method": "change"}, "change compares two models: give the one .* --base"),
        ({"method": "es@utility"}, "give them with --utility"),
        ({"method": "es@contrast"}, "give them with --utility"),
        ({"also": ["es+sas"]}, "--also es\\+sas: name scores, separated by commas"),
        ({"also": ["magic"]}, "no score 'magic'"),
        ({"method": "es", "top": 0.001}, "passes es with top 0.001; choose a larger share"),
        ({"method": "es-es"}, "no neuron passes es-es"),
    ],
)
def test_requests_that_are_refused(
    asked: IdentifyRequest, values: dict[str, Any], why: str
) -> None:
    with pytest.raises(SafeNeuronError, match=why):
        identify(change(asked, **values))


def test_one_prompt_is_too_few(asked: IdentifyRequest, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(["Hi"]), "utf-8")
    for side in ("harmful", "harmless", "utility"):
        with pytest.raises(SafeNeuronError, match=f"holds one {side} prompt"):
            identify(change(asked, **{side: str(tmp_path / "one.json")}))


def test_the_same_prompts_on_both_sides_are_told(asked: IdentifyRequest) -> None:
    with pytest.raises(SafeNeuronError, match="hold the same prompts"):
        identify(change(asked, harmless=asked.harmful))


def test_prompts_may_be_left_out(asked: IdentifyRequest, tmp_path: Path) -> None:
    """As those that are attacked later: what is left is what a file without them gives."""
    for name, prompts in (("some", HARMFUL[:3]), ("rest", HARMFUL[3:8])):
        (tmp_path / f"{name}.json").write_text(json.dumps(prompts), "utf-8")
    left = identify(change(asked, leave_out=str(tmp_path / "some.json")))
    rest = identify(change(asked, harmful=str(tmp_path / "rest.json")))
    assert left.mask.prompts.harmful.sha256 == rest.mask.prompts.harmful.sha256
    assert left.mask.neurons == rest.mask.neurons
    assert "without 3 of" in left.mask.prompts.harmful.name
    with pytest.raises(SafeNeuronError, match="holds no harmful prompt"):
        identify(change(asked, leave_out=asked.harmful))
