"""The paper's scores: closed forms, and independent formulas on random activations."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.scores.activation_shift import activation_shift, shift
from analysis.scores.effect_size import effect_size, pooled_std
from analysis.scores.table import column, score_table, widths_of
from toolkit.capture.moments import Moments

Array = npt.NDArray[np.float64]


def of(*columns: list[float]) -> Moments:
    return Moments.of(np.array(columns, dtype=np.float64).T)


def random_sides(seed: int, width: int = 40) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    harmful = generator.normal(generator.normal(size=width), 2.0, size=(17, width))
    return harmful, generator.gamma(2.0, size=(29, width))


def test_effect_size_closed_form() -> None:
    # Means 2 and 0, squared deviations 2 and 8 over 3 + 3 - 2 = 4: s = sqrt(2.5).
    harmful, harmless = of([1, 2, 3]), of([-2, 0, 2])
    assert pooled_std(harmful, harmless)[0] == pytest.approx(2.5**0.5)
    assert effect_size(harmful, harmless)[0] == pytest.approx(2 / 2.5**0.5)


def test_pooling_weighs_by_the_number_of_prompts() -> None:
    # (2-1) * 2 + (4-1) * 4/3 = 6 over 2 + 4 - 2 = 4.
    harmful, harmless = of([0, 2]), of([1, 3, 1, 3])
    assert pooled_std(harmful, harmless)[0] == pytest.approx((6 / 4) ** 0.5)
    assert effect_size(harmful, harmless)[0] == pytest.approx(-1 / (6 / 4) ** 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_effect_size_follows_from_scipy_s_t(seed: int) -> None:
    harmful, harmless = random_sides(seed)
    # Student's t of two samples with pooled variance is d * sqrt(nm / (n + m)).
    t = stats.ttest_ind(harmful, harmless, axis=0, equal_var=True).statistic
    n, m = len(harmful), len(harmless)
    d = effect_size(Moments.of(harmful), Moments.of(harmless))
    np.testing.assert_allclose(d, t / np.sqrt(n * m / (n + m)), rtol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_pooled_std_is_eq_6(seed: int) -> None:
    harmful, harmless = random_sides(seed)
    n, m = len(harmful), len(harmless)
    eq6 = np.sqrt(
        ((n - 1) * harmful.var(axis=0, ddof=1) + (m - 1) * harmless.var(axis=0, ddof=1))
        / (n + m - 2)
    )
    got = pooled_std(Moments.of(harmful), Moments.of(harmless))
    np.testing.assert_allclose(got, eq6, rtol=1e-12)


def test_neurons_that_never_vary() -> None:
    harmful, harmless = of([1, 1], [5, 5], [0, 0]), of([1, 1], [2, 2], [3, 3])
    assert effect_size(harmful, harmless).tolist() == [0.0, np.inf, -np.inf]


def test_too_few_prompts_for_a_deviation() -> None:
    assert np.isnan(effect_size(of([1]), of([2]))).all()
    # One prompt on one side has no variance of its own, but the other side's serves.
    assert effect_size(of([4]), of([0, 2]))[0] == pytest.approx(3 / 2**0.5)


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-50, 50))
def test_effect_size_knows_no_unit_and_no_offset(seed: int, unit: float, offset: float) -> None:
    harmful, harmless = random_sides(seed, 4)
    d = effect_size(Moments.of(harmful), Moments.of(harmless))
    moved = effect_size(Moments.of(harmful * unit + offset), Moments.of(harmless * unit + offset))
    np.testing.assert_allclose(moved, d, rtol=1e-6, atol=1e-9)
    swapped = effect_size(Moments.of(harmless), Moments.of(harmful))
    np.testing.assert_allclose(swapped, -d, rtol=1e-12)


def test_activation_shift_closed_form() -> None:
    # Shifts 0, 0, 0, 4 have mean 1 and population deviation sqrt(3).
    harmful, harmless = of([1, 1], [2, 2], [3, 3], [8, 8]), of([1, 1], [2, 2], [3, 3], [4, 4])
    assert shift(harmful, harmless).tolist() == [0, 0, 0, 4]
    z = activation_shift(harmful, harmless)
    np.testing.assert_allclose(z, np.array([-1, -1, -1, 3]) / 3**0.5)


@pytest.mark.parametrize("seed", range(5))
def test_activation_shift_is_scipy_s_z_score(seed: int) -> None:
    harmful, harmless = random_sides(seed)
    z = activation_shift(Moments.of(harmful), Moments.of(harmless))
    np.testing.assert_allclose(z, stats.zscore(harmful.mean(axis=0) - harmless.mean(axis=0)))
    assert z.mean() == pytest.approx(0, abs=1e-12)
    assert z.std() == pytest.approx(1)


def test_a_layer_that_shifts_alike_has_no_outlier() -> None:
    harmful, harmless = of([3, 3], [5, 5]), of([1, 1], [3, 3])
    assert activation_shift(harmful, harmless).tolist() == [0.0, 0.0]


def test_table_scores_each_layer_by_itself() -> None:
    sides = [random_sides(seed, width) for seed, width in ((0, 6), (1, 3), (2, 9))]
    harmful = [Moments.of(a) for a, _ in sides]
    harmless = [Moments.of(b) for _, b in sides]
    table = score_table(harmful, harmless)
    assert table["layer"].tolist() == [0] * 6 + [1] * 3 + [2] * 9
    assert table["neuron"].tolist() == [*range(6), *range(3), *range(9)]
    assert widths_of(table, 4) == [6, 3, 9, 0]
    for layer, (a, b) in enumerate(sides):
        rows = table[table["layer"] == layer]
        np.testing.assert_allclose(rows["mean_harmful"], a.mean(axis=0))
        np.testing.assert_allclose(rows["mean_harmless"], b.mean(axis=0))
        np.testing.assert_allclose(rows["delta"], a.mean(axis=0) - b.mean(axis=0))
        np.testing.assert_allclose(rows["es"], rows["delta"] / rows["pooled_std"])
        np.testing.assert_allclose(rows["sas"], stats.zscore(rows["delta"]))
    assert column(table, "es").shape == (18,)


def test_a_layer_without_neurons() -> None:
    full = Moments.of(np.array([[1.0], [2.0]]))
    table = score_table([Moments.zero(0), full], [Moments.zero(0), full])
    assert table["layer"].tolist() == [1]
    assert table["es"].tolist() == [0.0]
