"""Streaming moments: any split gives what NumPy gives on the whole."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toolkit.capture.moments import Moments

values = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.floats(-1e3, 1e3),
)


def whole(x: npt.NDArray[np.float64], cuts: list[int]) -> Moments:
    merged = Moments.zero(x.shape[1])
    for part in np.split(x, sorted(cuts)):
        merged = merged.merge(Moments.of(part))
    return merged


@given(values, st.lists(st.integers(0, 12), max_size=6))
def test_any_split_equals_numpy_on_the_whole(x: npt.NDArray[np.float64], cuts: list[int]) -> None:
    merged = whole(x, cuts)
    assert merged.count == len(x)
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(merged.m2, len(x) * x.var(axis=0), rtol=1e-9, atol=1e-6)
    if len(x) > 1:
        np.testing.assert_allclose(merged.variance, x.var(axis=0, ddof=1), rtol=1e-9, atol=1e-6)


@given(values, st.integers(0, 12))
def test_merging_commutes(x: npt.NDArray[np.float64], cut: int) -> None:
    a, b = (Moments.of(part) for part in np.split(x, [min(cut, len(x))]))
    one, other = a.merge(b), b.merge(a)
    assert one.count == other.count
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(one.m2, other.m2, rtol=1e-9, atol=1e-6)


def test_closed_form() -> None:
    x = Moments.of(np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]]))
    assert x.mean.tolist() == [3.0, 5.0]
    assert x.m2.tolist() == [14.0, 0.0]
    assert x.variance.tolist() == [7.0, 0.0]


def test_a_large_offset_costs_no_digits() -> None:
    generator = np.random.default_rng(0)
    small = generator.normal(size=(400, 3))
    shifted = whole(small + 1e8, list(range(0, 400, 16)))
    # The textbook E[x^2] - E[x]^2 would lose all 16 digits here.
    np.testing.assert_allclose(shifted.variance, small.var(axis=0, ddof=1), rtol=1e-6)


def test_float32_input_is_summed_in_float64() -> None:
    x = np.full((10_000, 1), 0.1, dtype=np.float32)
    assert Moments.of(x).mean[0] == pytest.approx(float(np.float32(0.1)), rel=1e-14)


def test_none_and_one() -> None:
    nothing = Moments.zero(2)
    assert nothing.merge(Moments.zero(2)).count == 0
    assert np.isnan(nothing.variance).all()
    one = nothing.merge(Moments.of(np.array([[3.0, 4.0]])))
    assert one.mean.tolist() == [3.0, 4.0]
    assert np.isnan(one.variance).all()
    assert Moments.of(np.empty((0, 2))).count == 0


def test_split_is_by_layer() -> None:
    x = np.random.default_rng(0).normal(size=(9, 7))
    layers = Moments.of(x).split([2, 0, 5])
    assert [len(layer.mean) for layer in layers] == [2, 0, 5]
    for layer, part in zip(layers, (x[:, :2], x[:, :0], x[:, 2:]), strict=True):
        assert layer.count == 9
        np.testing.assert_allclose(layer.mean, part.mean(axis=0))
        np.testing.assert_allclose(layer.variance, part.var(axis=0, ddof=1))
