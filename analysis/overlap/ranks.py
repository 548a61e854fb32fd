"""Two scores against each other: Spearman's rank correlation, with its chance level.

The null matches that of the sets: within each layer the second score is dealt out among the
neurons at random. Layers that score high under both then correlate by chance alone, so the
expected value over the model is not zero; its mean and variance have closed forms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from toolkit.errors import SafeNeuronError

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho of two scores, in one layer or over the model.

    Args:
        layer: which, None for all layers together.
        width: neurons there are.
        rho: -1 to 1; NaN where a score is the same for all of them.
        rho_chance: expected under permutation within layers; 0 in one layer.
        rho_deviation: standard deviation under it.
        p: two-sided, by the normal limit of that permutation test; a rough one for layers of
            fewer than about ten neurons.
    """

    layer: int | None
    width: int
    rho: float
    rho_chance: float
    rho_deviation: float
    p: float


def _check(name: str, values: Vector, layers: npt.NDArray[np.int64]) -> None:
    missing = np.flatnonzero(np.isnan(values))
    if len(missing):
        raise SafeNeuronError(
            f"{name} has {len(missing)} scores that are no number (NaN), the first in layer "
            f"{layers[missing[0]]}; score those neurons or leave the score out"
        )
    if len(values) and (values == values[0]).all():
        raise SafeNeuronError(f"{name} is the same for every neuron, so it ranks none of them")


def rank_correlation(
    first: Vector,
    second: Vector,
    widths: Sequence[int],
    names: tuple[str, str] = ("first", "second"),
) -> tuple[RankCorrelation, list[RankCorrelation]]:
    """Spearman's rank correlation over the whole model, and in each layer.

    Args:
        first: ``[neurons]``, a score of every neuron, layer after layer; ties share their
            mean rank, infinities rank at the ends.
        second: another score of the same neurons.
        widths: neurons in each layer.
        names: how errors call them.

    Raises:
        SafeNeuronError: a score is constant, has NaN, or is not of these widths.
    """
    layers = np.repeat(np.arange(len(widths)), widths)
    for name, values in zip(names, (first, second), strict=True):
        if len(values) != len(layers):
            raise SafeNeuronError(
                f"{name} scores {len(values)} neurons, not the {len(layers)} of this model shape"
            )
        _check(name, values, layers)
    whole = _correlation(None, rankdata(first), rankdata(second), layers)
    parts = []
    for layer in range(len(widths)):
        here = layers == layer
        ranks = rankdata(first[here]), rankdata(second[here])
        parts.append(_correlation(layer, *ranks, layers[here]))
    return whole, parts


def _correlation(
    layer: int | None, first: Vector, second: Vector, layers: npt.NDArray[np.int64]
) -> RankCorrelation:
    x, y = (ranks - (len(ranks) + 1) / 2 for ranks in (first, second))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    if not scale:
        nan = float("nan")
        return RankCorrelation(layer, len(x), nan, nan, nan, nan)
    # Moments of sum x_i y_pi(i) under permutation within groups (Hoeffding 1951).
    labels, group, sizes = np.unique(layers, return_inverse=True, return_counts=True)
    sums = [np.bincount(group, v, len(labels)) for v in (x, y, x * x, y * y)]
    mean = float((sums[0] * sums[1] / sizes).sum())
    spreads = [sums[2] - sums[0] ** 2 / sizes, sums[3] - sums[1] ** 2 / sizes]
    variance = float((spreads[0] * spreads[1] / np.maximum(sizes - 1, 1)).sum())
    rho, chance, deviation = float(x @ y) / scale, mean / scale, np.sqrt(variance) / scale
    z = (rho - chance) / deviation if deviation else 0.0
    p = float(2 * norm.sf(abs(z)))
    return RankCorrelation(layer, len(x), rho, chance, float(deviation), p)
