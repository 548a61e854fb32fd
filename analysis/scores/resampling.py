"""Multiple testing and bootstrap intervals: how much a score owes to luck."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.scores.registry import BY_PROMPT, Score
from toolkit.capture.moments import Moments, Vector
from toolkit.errors import SafeNeuronError


def false_discovery_rate(p: Vector) -> Vector:
    """Benjamini and Hochberg's adjusted p-values (1995), in the order of ``p``.

    Choosing those of at most q holds the expected share of false discoveries at q, for
    tests that are independent or positively dependent. Nobody says that neurons are.

    Args:
        p: ``[tests]``, without NaN.
    """
    order = np.argsort(p, kind="stable")
    count = len(p)
    scaled = p[order] * count / np.arange(1, count + 1)
    adjusted = np.empty(count)
    # A test is no worse than one with a larger p.
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def bootstrap(
    score: Score,
    harmful: npt.NDArray[np.floating],
    harmless: npt.NDArray[np.floating],
    resamples: int,
    seed: int = 0,
    confidence: float = 0.95,
    on_resample: Callable[[int], None] | None = None,
) -> tuple[Vector, Vector]:
    """Percentile bootstrap interval of each neuron of a layer (Efron and Tibshirani 1993).

    Prompts of each side are drawn with replacement. The same seed draws the same prompts
    in every layer.

    Args:
        score: one that reads ``moments`` or ``activations``.
        harmful: ``[prompts, width]`` activations.
        harmless: the same on the other side.
        resamples: draws.
        seed: of NumPy's default generator.
        confidence: share of the draws within.
        on_resample: hears of each draw.

    Returns:
        The lower and the upper end, ``[width]`` each.

    Raises:
        SafeNeuronError: the score's evidence is not kept prompt by prompt.
    """
    require_by_prompt(score)
    generator = np.random.default_rng(seed)
    drawn = np.empty((resamples, harmful.shape[1]))
    for row in drawn:
        sides: list[Any] = [
            side[generator.integers(len(side), size=len(side))] for side in (harmful, harmless)
        ]
        if score.reads == "moments":
            sides = [Moments.of(side) for side in sides]
        row[:] = score.function(*sides)
        if on_resample is not None:
            on_resample(1)
    tail = (1 - confidence) / 2
    # Infinite draws (a side without variance) must not meet in an interpolation.
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0, method="inverted_cdf")
    return low, high


def require_by_prompt(score: Score) -> None:
    """Refuse a score that has no bootstrap.

    Raises:
        SafeNeuronError: it is none of those that are kept prompt by prompt.
    """
    if score.reads not in BY_PROMPT:
        raise SafeNeuronError(
            f"{score.name} has no bootstrap: what it reads is not kept prompt by prompt; leave "
            "--bootstrap out, or score by es, sas, t or auc"
        )
