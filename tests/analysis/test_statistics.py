"""Wilson's interval: its closed form, and what defines it."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from analysis.statistics import Proportion, disjoint, holm, mcnemar, sign_flips, wilson

counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.9, 0.95, 0.99]))
def test_closed_form(count: tuple[int, int], confidence: float) -> None:
    k, n = count
    z = float(norm.ppf((1 + confidence) / 2))
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    got = wilson(k, n, confidence)
    assert got.low == pytest.approx(max(0.0, centre - half), abs=1e-9)
    assert got.high == pytest.approx(min(1.0, centre + half), abs=1e-9)
    assert got.low <= got.share <= got.high


@given(counts)
def test_its_ends_are_the_shares_that_the_score_test_just_rejects(count: tuple[int, int]) -> None:
    k, n = count
    got = wilson(k, n)
    z = float(norm.ppf(0.975))
    for end in (got.low, got.high):
        if 0 < end < 1:
            assert abs(k / n - end) == pytest.approx(z * sqrt(end * (1 - end) / n), rel=1e-6)


@given(counts)
def test_symmetry(count: tuple[int, int]) -> None:
    k, n = count
    one, other = wilson(k, n), wilson(n - k, n)
    assert one.low == pytest.approx(1 - other.high, abs=1e-12)
    assert one.high == pytest.approx(1 - other.low, abs=1e-12)


def test_known_values() -> None:
    # Newcombe (1998), Table I, method 3.
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(k, n).low == pytest.approx(low, abs=5e-5)
        assert wilson(k, n).high == pytest.approx(high, abs=5e-5)


def test_nothing_counted_says_nothing() -> None:
    empty = wilson(0, 0)
    assert (empty.low, empty.high) == (0.0, 1.0)
    assert empty.share != empty.share
    assert str(empty) == "0/0"
    assert str(wilson(1, 4)).startswith("1/4 = 25.0% [")


def test_disjoint() -> None:
    low, middle, high = (Proportion(0, 1, a, a + 0.2) for a in (0.1, 0.3, 0.6))
    assert disjoint(low, high)
    assert disjoint(high, low)
    assert not disjoint(low, middle)  # they touch
    assert not disjoint(low, low)


def test_sign_flips_estimate_mcnemar() -> None:
    for gained, lost in ((3, 1), (12, 4), (20, 2)):
        differences = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 50)
        assert sign_flips(differences) == pytest.approx(mcnemar(gained, lost), abs=0.01)
    assert sign_flips(np.zeros(9)) == 1.0
    # Thirds: of 2^3 signs, two are as far out as all on one side.
    assert sign_flips(np.full(3, 1 / 3)) == pytest.approx(2 / 8, abs=0.01)


def test_holm_rejects_what_its_steps_reject() -> None:
    # Holm's own order: the k-th smallest of m is compared with level / (m - k + 1).
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    for level in (0.015, 0.025, 0.05, 0.2):
        rejected: set[int] = set()
        for rank, place in enumerate(sorted(range(4), key=lambda i: p_values[i])):
            if p_values[place] > level / (4 - rank):
                break
            rejected.add(place)
        assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
