"""Selections: the paper's thresholds, top shares and their unions."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.scores.resampling import false_discovery_rate
from analysis.select import METHODS, Method, Selection, select, select_parts
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

WIDTHS = [3, 4]
#        (layer, neuron)  0,0  0,1  0,2   1,0  1,1  1,2  1,3
ES = [2.0, 2.1, -5.0, 3.0, 0.5, 1.9, 0.0]
SAS = [2.5, 2.0, 9.0, 0.1, 2.1, -1.0, 4.0]
DELTA = [1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 0.0]


def table(es: list[float] = ES, sas: list[float] = SAS, delta: list[float] = DELTA) -> pd.DataFrame:
    return pd.DataFrame({"es": es, "sas": sas, "delta": delta})


def chosen(selection: Selection) -> set[tuple[int, int]]:
    return set(select(table(), WIDTHS, selection))


def test_thresholds_are_strict_and_one_sided() -> None:
    assert chosen(Selection("es")) == {(0, 1), (1, 0)}  # 2.0 is not above 2
    assert chosen(Selection("es", tau_es=1.8)) == {(0, 0), (0, 1), (1, 0), (1, 2)}
    # 9.0 and 4.0 pass the threshold, but their shift is not positive (Eq. 9).
    assert chosen(Selection("sas")) == {(0, 0), (1, 1)}
    assert chosen(Selection("es+sas")) == {(0, 1), (1, 0), (0, 0), (1, 1)}


def test_parts_say_which_score_chose() -> None:
    parts = select_parts(table(), WIDTHS, Selection("es+sas", tau_es=1.8))
    assert parts.keys() == {"es", "sas"}
    assert set(parts["es"] & parts["sas"]) == {(0, 0)}
    assert parts["es"] | parts["sas"] == select(table(), WIDTHS, Selection("es+sas", tau_es=1.8))


def test_top_share_by_rank() -> None:
    assert chosen(Selection("es", top=0.3)) == {(1, 0), (0, 1)}  # 2.1 of 7
    assert chosen(Selection("es", top=0.28)) == {(1, 0)}  # 1.96 of 7
    assert chosen(Selection("es", top=0.1)) == set()
    # Never a neuron that fires less on harmful prompts, however large the share.
    assert chosen(Selection("es", top=0.99)) == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)}
    assert chosen(Selection("sas", top=0.99)) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_shares_of_each_score() -> None:
    assert chosen(Selection(top_es=0.15)) == {(1, 0)}
    assert chosen(Selection(top_sas=0.15)) == {(0, 0)}
    assert chosen(Selection(top_es=0.15, top_sas=0.3)) == {(1, 0), (0, 0), (1, 1)}


@pytest.mark.parametrize(("share", "size"), [(0.29, 29), (0.57, 57), (0.01, 1), (0.999, 99)])
def test_a_share_is_counted_without_floating_point_s_hair(share: float, size: int) -> None:
    scores = list(np.arange(100, 0, -1.0))
    frame = table(scores, scores, scores)
    assert len(select(frame, [100], Selection("es", top=share))) == size


@given(st.integers(0, 10_000), st.floats(0.001, 0.999), st.sampled_from(METHODS))
def test_top_stays_within_budget_and_uses_it(seed: int, top: float, method: Method) -> None:
    generator = np.random.default_rng(seed)
    es, sas = generator.normal(size=(2, 60))
    frame = table(list(es), list(sas), [1.0] * 60)
    budget = int(top * 60 + 1e-9)
    parts = select_parts(frame, [20, 40], Selection(method, top=top))
    union = select(frame, [20, 40], Selection(method, top=top))
    assert len(union) <= budget
    for name, part in parts.items():
        scores = {"es": es, "sas": sas}[name]
        mask = np.concatenate(part.masks())
        outside = scores[~mask]
        # A head: nobody left out scores above anybody taken, and all are positive.
        if mask.any():
            assert scores[mask].min() > 0
            assert scores[mask].min() >= outside.max()
    sizes = {len(part) for part in parts.values()}
    ends = {int((scores > 0).sum()) for scores in (es, sas)}
    assert len(sizes) == 1 or sizes & ends
    if "+" in method and not sizes & ends:
        # One more of each would go over.
        more = [set(np.argsort(-scores)[: min(sizes) + 1]) for scores in (es, sas)]
        assert len(more[0] | more[1]) > budget
    elif method == "es":
        assert len(union) == min(budget, int((es > 0).sum()))


def test_ties_go_to_the_first() -> None:
    frame = table([1.0] * 7, [1.0] * 7, [1.0] * 7)
    for method in METHODS:
        assert set(select(frame, WIDTHS, Selection(method, top=0.6))) == {
            (0, 0), (0, 1), (0, 2), (1, 0)
        }  # fmt: skip


def test_infinite_effect_sizes_come_first() -> None:
    frame = table([1.0, np.inf, 2.0, 0, 0, 0, -np.inf])
    assert set(select(frame, WIDTHS, Selection("es", top=0.15))) == {(0, 1)}
    assert set(select(frame, WIDTHS, Selection("es", tau_es=100))) == {(0, 1)}


def test_layers_without_neurons() -> None:
    neurons = select(table(), [0, 3, 0, 4, 0], Selection("es"))
    assert neurons == NeuronSet([0, 3, 0, 4, 0], {1: [1], 3: [0]})


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.1, float("nan")])
@pytest.mark.parametrize("name", ["top", "top_es", "top_sas"])
def test_shares_that_are_none(name: str, share: float) -> None:
    flag = "--" + name.replace("_", "-")
    with pytest.raises(SafeNeuronError, match=f"{flag} .* is not a share between 0 and 1"):
        Selection(**{name: share})


def test_other_refusals() -> None:
    with pytest.raises(SafeNeuronError, match="no method 'magic'; choose one of es, sas"):
        Selection("magic")
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(SafeNeuronError, match="finite"):
            Selection(tau_es=wrong)
    with pytest.raises(SafeNeuronError, match="--top alone"):
        Selection(top=0.1, top_es=0.1)


def test_parameters_are_what_was_used() -> None:
    assert Selection("es", tau_es=3).parameters() == {"tau_es": 3}
    assert Selection("sas").parameters() == {"tau_sas": 2.0}
    assert Selection().parameters() == {"tau_es": 2.0, "tau_sas": 2.0}
    assert Selection(top=0.01).parameters() == {"top": 0.01}
    assert Selection(top_es=0.01, top_sas=0.02).parameters() == {"top_es": 0.01, "top_sas": 0.02}


def test_expressions_choose_by_each_score_and_combine() -> None:
    assert chosen(Selection("es&sas", tau_es=1.8)) == {(0, 0)}
    assert chosen(Selection("es-sas", tau_es=1.8)) == {(0, 1), (1, 0), (1, 2)}
    # Every score takes the share; only a union divides it.
    assert chosen(Selection("es&sas", top=0.45)) == {(0, 0), (0, 1)}
    parts = select_parts(table(), WIDTHS, Selection("es-sas", tau_es=1.8))
    assert parts.keys() == {"es"}, "what only takes away has no part"
    parts = select_parts(table(), WIDTHS, Selection("es&sas", tau_es=1.8))
    assert set(parts["es"]) == set(parts["sas"]) == {(0, 0)}


def by_layer(**columns: list[float]) -> pd.DataFrame:
    layers = {"layer": np.repeat([0, 1], WIDTHS), "delta": [1.0] * 7}
    return pd.DataFrame(layers | columns)


def test_shares_of_each_layer() -> None:
    frame = by_layer(es=[9.0, 8, 7, 3, 2, 1, 0], sas=[1.0, 2, 3, 4, 5, 6, 7])
    # A third of three and a third of four: one each.
    assert set(select(frame, WIDTHS, Selection("es", top=0.34, per_layer=True))) == {(0, 0), (1, 0)}
    both = Selection(top_es=0.34, top_sas=0.5, per_layer=True)
    assert set(select(frame, WIDTHS, both)) == {(0, 0), (0, 2), (1, 0), (1, 2), (1, 3)}


@pytest.mark.parametrize("per_layer", [False, True])
def test_false_discovery_rate_is_scipy_s(per_layer: bool) -> None:
    generator = np.random.default_rng(3)
    values = generator.normal(size=400)
    values[::7] += 4
    p = stats.norm.sf(values)
    layers = np.repeat([0, 1], [150, 250])
    frame = pd.DataFrame({"layer": layers, "t": values, "t_p": p, "delta": values})
    found = select(frame, [150, 250], Selection("t", fdr=0.1, per_layer=per_layer))
    groups = [layers == 0, layers == 1] if per_layer else [np.full(400, True)]
    expected = np.zeros(400, dtype=bool)
    for group in groups:
        expected[group] = stats.false_discovery_control(p[group]) <= 0.1
    assert np.concatenate(found.masks()).tolist() == expected.tolist()
    assert 40 < expected.sum() < 80


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_adjusted_p_values_are_scipy_s(values: list[float]) -> None:
    p = np.array(values)
    np.testing.assert_allclose(false_discovery_rate(p), stats.false_discovery_control(p))


def test_under_the_null_the_rate_is_held() -> None:
    generator = np.random.default_rng(0)
    wrong = [(false_discovery_rate(generator.random(200)) <= 0.1).any() for _ in range(2000)]
    # With every hypothesis true, a discovery is made with probability q: 0.1 +/- 4 s.e.
    assert abs(np.mean(wrong) - 0.1) < 4 * (0.1 * 0.9 / 2000) ** 0.5


@pytest.mark.parametrize(
    "selection",
    [
        Selection("es-sas", tau_es=1.8),
        Selection("t&auc", tau={"t": 3.0, "auc": 0.9}),
        Selection("snip-utility", top=0.05, share={"snip@utility": 0.1}, per_layer=True),
        Selection("t", fdr=0.05),
        Selection(top_es=0.1, top_sas=0.2),
    ],
)
def test_a_mask_s_parameters_say_how_it_was_chosen(selection: Selection) -> None:
    again = Selection.of(selection.method, selection.parameters())
    assert again.parameters() == selection.parameters()
    assert [again.share_of(leaf) for leaf in again.scores] == [
        selection.share_of(leaf) for leaf in selection.scores
    ]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"method": "snip"}, "snip has no threshold of its own; choose a share with --top"),
        ({"method": "es", "fdr": 0.1}, "es has no p-value for --fdr; t and auc have one"),
        ({"method": "t", "fdr": 1.5}, "--fdr 1.5 is not a rate"),
        ({"method": "t", "fdr": 0.1, "top": 0.1}, "--fdr or a share, not both"),
        ({"per_layer": True}, "give --per-layer with --top"),
        ({"tau": {"snip": 1.0}}, "--tau snip: the method es\\+sas has no score of that name"),
        ({"method": "t", "share": {"t": 2.0}}, "--share t 2 is not a share"),
        ({"method": "t", "tau": {"t": float("nan")}}, "finite"),
        ({"method": "es&", "top": 0.1}, "ends where a score should stand"),
    ],
)
def test_selections_that_are_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(SafeNeuronError, match=why):
        Selection(**values)
