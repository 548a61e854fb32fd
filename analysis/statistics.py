"""Intervals and exact tests for counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, fisher_exact


@dataclass(frozen=True)
class Proportion:
    """Successes k of n with its Wilson 95 % interval, all shares 0 to 1."""

    k: int
    n: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share k / n; NaN for n = 0."""
        return self.k / self.n if self.n else float("nan")

    def __str__(self) -> str:
        if not self.n:
            return "0/0"
        return f"{self.k}/{self.n} = {self.share:.1%} [{self.low:.1%}, {self.high:.1%}]"


def wilson(k: int, n: int, confidence: float = 0.95) -> Proportion:
    """Wilson score interval of k of n (Wilson 1927); 0 to 1 for n = 0."""
    if not n:
        return Proportion(k, n, 0.0, 1.0)
    interval = binomtest(k, n).proportion_ci(confidence, method="wilson")
    return Proportion(k, n, float(interval.low), float(interval.high))


def disjoint(a: Proportion, b: Proportion) -> bool:
    """Whether two intervals have no point in common."""
    return a.low > b.high or b.low > a.high


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value for paired outcomes (McNemar 1947, exact form).

    Args:
        gained: pairs where only the first succeeded.
        lost: pairs where only the second did; pairs that agree say nothing.
    """
    if not gained + lost:
        return 1.0
    return float(binomtest(gained, gained + lost, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for how many there are (Holm 1979), in the order given.

    Each is the least level of the whole family at which its own test is rejected.
    """
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def bootstrap_ratio(
    top: npt.NDArray[np.float64],
    bottom: npt.NDArray[np.float64],
    resamples: int = 2_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of sum(top) / sum(bottom) (Efron and Tibshirani 1993).

    Units are drawn with replacement, each with its top and its bottom. The same ``seed``
    draws the same units, so intervals over one set of units are comparable.

    Args:
        top: ``[units]``.
        bottom: ``[units]``, positive.
        resamples: draws.
        seed: of NumPy's default generator.
        confidence: share of the draws within.
    """
    units = len(top)
    generator = np.random.default_rng(seed)
    times = generator.multinomial(units, np.full(units, 1 / units), size=resamples)
    ratios = (times @ top) / (times @ bottom)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def two_proportions(a: Proportion, b: Proportion) -> float:
    """Fisher's exact two-sided p-value that two shares are one; for prompts that differ."""
    if not a.n or not b.n:
        return 1.0
    table = np.array([[a.k, a.n - a.k], [b.k, b.n - b.k]])
    return float(fisher_exact(table).pvalue)


def sign_flips(
    differences: npt.NDArray[np.float64], resamples: int = 20_000, seed: int = 0
) -> float:
    """Two-sided p-value that paired differences are as often above zero as below (Fisher 1935).

    Each unit's difference keeps its size and gets a random sign; the value is the share of
    draws whose mean is at least as far from zero, the data themselves counted as one draw.
    With differences of -1, 0 and 1 it estimates the exact McNemar test.

    Args:
        differences: ``[units]``.
        resamples: draws.
        seed: of NumPy's default generator.
    """
    sizes = np.abs(differences[differences != 0])
    if not len(sizes):
        return 1.0
    observed = abs(float(differences.sum()))
    generator = np.random.default_rng(seed)
    # A sum of many thirds is not exact; what equals the observed one is to count.
    signs = generator.integers(0, 2, size=(resamples, len(sizes))) * 2 - 1
    beyond = int((np.abs(signs @ sizes) >= observed - 1e-9).sum())
    return (1 + beyond) / (1 + resamples)
