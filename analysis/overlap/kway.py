"""How much any K of several sets share, against K (SafeNeuron, Fig. 5), with chance.

The paper names an "overlap ratio" without a formula. Here it is intersection over union, so
that K = 2 is the Jaccard index; the intersection over the mean size is given beside.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.overlap.chance import common_widths, layer_counts
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

Counts = npt.NDArray[np.int64]
LIMIT = 2_000
"""Combinations of one K that are all taken; of more, this many are drawn."""


def kway_table(sets: Mapping[str, NeuronSet], limit: int = LIMIT, seed: int = 0) -> pd.DataFrame:
    """Overlap of K sets for every K from 2 up, over all combinations of K of them.

    Args:
        sets: name -> set, all of one model shape.
        limit: most combinations of one K.
        seed: of the draw where there are more.

    Returns:
        One row a K: ``k``, ``combinations`` (there are), ``drawn`` (were taken), ``ratio``
        (mean of intersection over union), ``variance`` (over combinations), ``low`` and
        ``high`` (smallest and largest), ``ratio_chance`` (mean of the expected ratio of
        random sets of the same per-layer sizes), ``share`` and ``share_chance`` (the same
        for intersection over mean size), ``both`` and ``both_chance`` (mean intersections,
        in neurons).

    Raises:
        SafeNeuronError: fewer than two sets, sets of different shapes, or an empty one.
    """
    if len(sets) < 2:
        raise SafeNeuronError("K-way overlap needs at least two sets; give more masks or topics")
    named = dict(sets)
    widths = np.array(common_widths(named), dtype=np.float64)
    sizes = layer_counts(named)
    patterns, times = membership_patterns(list(named.values()))
    generator = np.random.default_rng(seed)
    rows = []
    for k in range(2, len(named) + 1):
        chosen = list(_combinations(len(named), k, limit, generator))
        values = np.array([_one(patterns, times, widths, sizes, c) for c in chosen])
        mean = values.mean(axis=0)
        rows.append(
            {
                "k": k,
                "combinations": comb(len(named), k),
                "drawn": len(chosen),
                "ratio": mean[0],
                "variance": values[:, 0].var(),
                "low": values[:, 0].min(),
                "high": values[:, 0].max(),
                "ratio_chance": mean[1],
                "share": mean[2],
                "share_chance": mean[3],
                "both": mean[4],
                "both_chance": mean[5],
            }
        )
    return pd.DataFrame(rows)


def membership_patterns(sets: Sequence[NeuronSet]) -> tuple[npt.NDArray[np.bool_], Counts]:
    """Which combinations of sets neurons are in, and how many are in each.

    Returns:
        Patterns ``[patterns, sets]`` of the neurons that are in any set, and ``[patterns]``
        neurons with each.
    """
    member = np.stack([np.concatenate(neurons.masks()) for neurons in sets], axis=1)
    member = member[member.any(axis=1)]
    patterns, times = np.unique(member, axis=0, return_counts=True)
    return patterns, times


def _combinations(
    total: int, k: int, limit: int, generator: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    """All combinations, or ``limit`` distinct ones at random."""
    if comb(total, k) <= limit:
        yield from combinations(range(total), k)
        return
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < limit:
        drawn.add(tuple(sorted(generator.choice(total, k, replace=False).tolist())))
    yield from sorted(drawn)


def _one(
    patterns: npt.NDArray[np.bool_],
    times: Counts,
    widths: npt.NDArray[np.float64],
    sizes: Counts,
    chosen: tuple[int, ...],
) -> tuple[float, ...]:
    part = patterns[:, chosen]
    both, either = int(times[part.all(axis=1)].sum()), int(times[part.any(axis=1)].sum())
    mine = sizes[list(chosen)]
    mean_size = mine.sum() / len(chosen)
    both_chance, ratio_chance = expected_ratio(widths, mine)
    return (
        both / either,
        ratio_chance,
        both / mean_size,
        both_chance / mean_size,
        both,
        both_chance,
    )


def expected_ratio(widths: npt.NDArray[np.float64], sizes: Counts) -> tuple[float, float]:
    """Expected intersection, and expected intersection over union, of random sets.

    The first is exact. The second is the expansion of the ratio to second order around the
    exact means, with exact variances and covariance of both counts; what it leaves out is of
    the order of (deviation of the union / its mean) squared, less than one in a thousand of
    the value once the union has some tens of neurons.

    Args:
        widths: ``[layers]``, neurons in each.
        sizes: ``[sets, layers]``.
    """
    here = widths > 0
    n, a = widths[here], sizes[:, here].astype(np.float64)
    inside, outside = np.prod(a / n, axis=0), np.prod(1 - a / n, axis=0)
    both, either = (n * inside).sum(), (n * (1 - outside)).sum()
    # Of two different neurons: both in no set, one in all sets and the other in none.
    pairs = n * np.maximum(n - 1, 1)
    two_outside = np.prod((n - a) * (n - a - 1) / pairs, axis=0)
    one_each = np.prod(a * (n - a) / pairs, axis=0)
    ordered = n * (n - 1)
    variance = (n * outside + ordered * two_outside - (n * outside) ** 2).sum()
    # The union is the width less those outside, hence the sign.
    covariance = -(ordered * one_each - n * n * inside * outside).sum()
    ratio = both / either - covariance / either**2 + both * variance / either**3
    return float(both), float(ratio)
