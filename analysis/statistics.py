"""Intervals for counts."""

from dataclasses import dataclass

from scipy.stats import binomtest


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
