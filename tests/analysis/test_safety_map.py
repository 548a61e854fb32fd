"""The cells of the safety map against the neurons they stand for."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.safety_map import (
    Grid,
    Window,
    colour_limit,
    difference,
    grid,
    mass_by_layer,
    percentile,
)
from analysis.select import Selection, select
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet


def values_of(widths: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=sum(widths))


def members(cells: Grid, row: int, column: int, widths: list[int]) -> list[tuple[int, int]]:
    """The neurons that a cell stands for, by its own account of itself."""
    layer, first = int(cells.layer[row]), int(cells.first[row]) + column * cells.per
    last = min(first + cells.per, cells.window.neurons[1] + 1, widths[layer])
    if cells.folded:
        last = min(last, int(cells.first[row]) + cells.value.shape[1])
    return [(layer, neuron) for neuron in range(first, last)]


@given(
    widths=st.lists(st.integers(0, 90), min_size=1, max_size=5).filter(any),
    columns=st.integers(16, 40),
    seed=st.integers(0, 9),
    ends=st.tuples(*[st.integers(-5, 100)] * 4) | st.none(),
)
def test_a_cell_shows_its_strongest_selected_neuron(
    widths: list[int], columns: int, seed: int, ends: tuple[int, ...] | None
) -> None:
    values = values_of(widths, seed)
    rng = np.random.default_rng(seed)
    neurons = NeuronSet(
        widths, {i: np.flatnonzero(rng.random(w) < 0.1) for i, w in enumerate(widths)}
    )
    window = Window(ends[:2], ends[2:]) if ends else None  # type: ignore[arg-type]
    cells = grid(values, neurons, window, columns)
    starts = np.concatenate([[0], np.cumsum(widths)])
    assert cells.value.shape[1] <= columns
    seen = []
    for row in range(cells.value.shape[0]):
        for column in range(cells.value.shape[1]):
            there = members(cells, row, column, widths)
            seen += there
            chosen = [place for place in there if place in neurons]
            assert cells.chosen[row, column] == len(chosen)
            if not there:
                assert cells.neuron[row, column] == -1
                assert np.isnan(cells.value[row, column])
                continue
            best = max(chosen or there, key=lambda place: abs(values[starts[place[0]] + place[1]]))
            assert (cells.layer[row], cells.neuron[row, column]) == best
            assert cells.value[row, column] == values[starts[best[0]] + best[1]]
            assert cells.place(*best) == (row, column)
    (top, bottom), (left, right) = cells.window.layers, cells.window.neurons
    wanted = [
        (layer, neuron)
        for layer in range(top, bottom + 1)
        for neuron in range(left, min(right + 1, widths[layer]))
    ]
    assert seen == wanted


def test_a_score_that_is_no_number_has_no_cell() -> None:
    values = np.array([np.nan, 1.0, np.nan])
    cells = grid(values, NeuronSet([2, 1], {0: [0]}))
    assert np.isnan(cells.value).tolist() == [[True, False], [True, True]]
    assert cells.neuron.tolist() == [[-1, 1], [-1, -1]]


def test_another_shape_is_refused() -> None:
    with pytest.raises(SafeNeuronError, match="of one model"):
        grid(np.zeros(3), NeuronSet([2], {}))
    with pytest.raises(SafeNeuronError, match="one model shape"):
        difference(np.zeros(3), np.zeros(2), True)


def test_mass_counts_what_is_selected_and_positive() -> None:
    values = np.array([1.0, -2.0, 4.0, np.inf, 8.0])
    neurons = NeuronSet([3, 2], {0: [0, 1], 1: [0, 1]})
    assert mass_by_layer(values, neurons).tolist() == [1.0, 8.0]


def test_colours_end_at_the_largest_but_for_outliers() -> None:
    values = np.concatenate([np.linspace(-1, 1, 10_000), [1e9, np.nan, np.inf]])
    assert colour_limit(values) == pytest.approx(1, abs=0.01)
    assert colour_limit(np.zeros(4)) == 1.0


@given(st.lists(st.integers(-3, 3) | st.just(float("nan")), min_size=1))
def test_percentiles_share_ties(numbers: list[float]) -> None:
    values = np.array(numbers, dtype=np.float64)
    known = values[~np.isnan(values)]
    for value, found in zip(values, percentile(values), strict=True):
        if np.isnan(value):
            assert np.isnan(found)
        else:
            share = (known < value).mean() + (known == value).mean() / 2
            assert found == pytest.approx(100 * share)


def test_a_difference_is_of_values_or_of_percentiles() -> None:
    first, second = np.array([1.0, 2.0]), np.array([30.0, 10.0])
    assert difference(first, second, True).tolist() == [29.0, 8.0]
    assert difference(first, second, False).tolist() == [50.0, -50.0]


@pytest.mark.parametrize("share", [0.002, 0.05, 0.4])
def test_a_share_of_a_large_table_is_its_head(share: float) -> None:
    """Only what can be chosen is sorted; ties at the edge go by place as before."""
    rng = np.random.default_rng(2)
    values = rng.integers(-40, 40, size=5_000).astype(np.float64)
    table = pd.DataFrame({"layer": 0, "es": values, "delta": values})
    found = select(table, [5_000], Selection("es", share={"es": share}))
    allowed = np.flatnonzero(values > 0)
    wanted = allowed[np.argsort(-values[allowed], kind="stable")][: int(share * 5_000)]
    assert set(found.layer(0).tolist()) == set(wanted.tolist())
