"""What chance gives: intersections of random sets with the same sizes in each layer.

The null of every overlap here: each set keeps its number of neurons in each layer, and which
neurons those are is drawn at random, independently of the other sets. The intersection in one
layer is then hypergeometric, and over the model it is the sum of independent ones, whose
distribution is the convolution of theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

Vector = npt.NDArray[np.float64]

# Probabilities below this are cut off both ends of a distribution: a convolution over 80
# layers stays short. All terms are positive, so nothing above P_FLOOR feels it.
TINY = 1e-40
P_FLOOR = 1e-30
"""p-values are exact down to here; a smaller one is given as this."""


@dataclass(frozen=True)
class Null:
    """Distribution of a count under chance.

    Args:
        low: the smallest count.
        pmf: ``[counts]``, probability of ``low``, ``low + 1``, ...
    """

    low: int
    pmf: Vector

    @property
    def counts(self) -> Vector:
        """The counts that the probabilities are of."""
        return self.low + np.arange(len(self.pmf), dtype=np.float64)

    @property
    def mean(self) -> float:
        """Expected count."""
        return float(self.pmf @ self.counts)

    def expected(self, value: Callable[[Vector], Vector]) -> float:
        """Expected value of a function of the count; NaN where it is not defined."""
        return float(self.pmf @ value(self.counts))

    def at_least(self, observed: int) -> float:
        """p-value of ``observed`` or more."""
        if observed <= self.low:
            return 1.0
        return self._p(self.pmf[observed - self.low :])

    def at_most(self, observed: int) -> float:
        """p-value of ``observed`` or fewer."""
        if observed >= self.low + len(self.pmf) - 1:
            return 1.0
        return self._p(self.pmf[: max(observed - self.low + 1, 0)])

    @staticmethod
    def _p(part: Vector) -> float:
        return float(np.clip(part.sum(), P_FLOOR, 1.0))

    def interval(self, confidence: float = 0.95) -> tuple[int, int]:
        """The counts that chance stays within, with at most half of the rest on each side."""
        below = np.cumsum(self.pmf)
        tail = (1 - confidence) / 2
        low = int(np.searchsorted(below, tail, side="right"))
        high = int(np.searchsorted(below, 1 - tail, side="left"))
        last = len(self.pmf) - 1
        return self.low + min(low, last), self.low + min(high, last)

    def plus(self, other: "Null") -> "Null":
        """Distribution of the sum with an independent count."""
        return _trimmed(self.low + other.low, np.convolve(self.pmf, other.pmf))


def _trimmed(low: int, pmf: Vector) -> Null:
    kept = np.flatnonzero(pmf > TINY)
    first, last = int(kept[0]), int(kept[-1])
    return Null(low + first, pmf[first : last + 1])


def hypergeometric(width: int, first: int, second: int) -> Null:
    """Size of the intersection of two random sets of ``first`` and ``second`` of ``width``.

    From the ratio of neighbouring probabilities, ``(a - i)(b - i) / ((i + 1)(n - a - b + i
    + 1))``, which needs no factorials.
    """
    low, high = max(0, first + second - width), min(first, second)
    i = np.arange(low, high, dtype=np.float64)
    above = np.log(first - i) + np.log(second - i)
    below = np.log(i + 1) + np.log(width - first - second + i + 1)
    logs = np.concatenate([[0.0], np.cumsum(above - below)])
    pmf = np.exp(logs - logs.max())
    return _trimmed(low, pmf / pmf.sum())


def intersection(width: int, sizes: Sequence[int]) -> Null:
    """Size of the intersection of any number of random sets of one layer.

    Exact: what is left of the first sets, intersected with the next, is hypergeometric given
    its size.
    """
    ordered = sorted(sizes)
    null = Null(ordered[0], np.ones(1))
    for size in ordered[1:]:
        pmf = np.zeros(ordered[0] + 1)
        for left, weight in zip(null.counts.astype(int), null.pmf, strict=True):
            step = hypergeometric(width, left, size)
            pmf[step.low : step.low + len(step.pmf)] += weight * step.pmf
        null = _trimmed(0, pmf)
    return null


def total(nulls: Sequence[Null]) -> Null:
    """Distribution of the sum over layers."""
    null = Null(0, np.ones(1))
    # Short ones first: the cost is the product of the lengths.
    for part in sorted(nulls, key=lambda each: len(each.pmf)):
        null = null.plus(part)
    return null


def common_widths(sets: dict[str, NeuronSet]) -> tuple[int, ...]:
    """The shape that all sets are of.

    Raises:
        SafeNeuronError: they are of different models, or one of them is empty.
    """
    names = list(sets)
    widths = sets[names[0]].widths
    for name, neurons in sets.items():
        if neurons.widths != widths:
            raise SafeNeuronError(
                f"{names[0]} and {name} are of models of different shape ({len(widths)} layers "
                f"of {sum(widths)} neurons and {len(neurons.widths)} of {neurons.total}); "
                "overlap needs one shape"
            )
        if not len(neurons):
            raise SafeNeuronError(f"{name} names no neurons, so nothing can overlap with it")
    return widths


def layer_counts(sets: dict[str, NeuronSet]) -> npt.NDArray[np.int64]:
    """Sizes ``[sets, layers]``."""
    return np.array([neurons.counts() for neurons in sets.values()], dtype=np.int64)
