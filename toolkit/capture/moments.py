"""Streaming mean and variance of every neuron, in float64, mergeable. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of one layer's neurons.

    Args:
        count: how many prompts.
        mean: ``[width]``, activation units.
        m2: ``[width]``, sum over prompts of the squared distance from the mean.
    """

    count: int
    mean: Vector
    m2: Vector

    @classmethod
    def zero(cls, width: int) -> Moments:
        """Moments of no prompts."""
        return cls(0, np.zeros(width), np.zeros(width))

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> Moments:
        """Moments of ``[prompts, width]`` values."""
        values = values.astype(np.float64)
        if not len(values):
            return cls.zero(values.shape[1])
        mean = values.mean(axis=0)
        return cls(len(values), mean, np.square(values - mean).sum(axis=0))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + np.square(delta) * (self.count * other.count / count)
        return Moments(count, mean, m2)

    def split(self, widths: Sequence[int]) -> list[Moments]:
        """Cut into layers of these widths, which stood one after the other."""
        cuts = np.cumsum(widths)[:-1]
        pieces = zip(np.split(self.mean, cuts), np.split(self.m2, cuts), strict=True)
        return [Moments(self.count, mean, m2) for mean, m2 in pieces]

    @property
    def variance(self) -> Vector:
        """Unbiased variance, ``[width]``; NaN for fewer than two prompts."""
        if self.count < 2:
            return np.full_like(self.mean, np.nan)
        return self.m2 / (self.count - 1)


LayerMoments = Sequence[Moments]
"""One :class:`Moments` for each layer of a model, over one prompt set."""
