"""Two neuron sets against each other: Jaccard index and overlap coefficient, with chance."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.overlap.chance import Null, Vector, common_widths, hypergeometric, total
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet


@dataclass(frozen=True)
class PairOverlap:
    """How far two sets agree, in one layer or over the model.

    Args:
        layer: which, None for all layers together.
        width: neurons there are.
        first, second: sizes of the sets.
        both: neurons in both.
        both_chance: expected number under the null.
        jaccard: ``both / either``; NaN where both sets are empty.
        jaccard_chance: its expected value under the null.
        jaccard_low, jaccard_high: what chance stays within in 95 of 100 draws.
        overlap: overlap coefficient, ``both / size of the smaller``; NaN where one is empty.
        overlap_chance: its expected value under the null.
        p_more: exact p-value of this many in both or more (:data:`P_FLOOR` at the least).
        p_fewer: exact p-value of this many or fewer.
    """

    layer: int | None
    width: int
    first: int
    second: int
    both: int
    both_chance: float
    jaccard: float
    jaccard_chance: float
    jaccard_low: float
    jaccard_high: float
    overlap: float
    overlap_chance: float
    p_more: float
    p_fewer: float


def _pair(
    layer: int | None, width: int, sizes: tuple[int, int], both: int, null: Null
) -> PairOverlap:
    smaller, together = min(sizes), sum(sizes)

    def jaccard(count: Vector) -> Vector:
        with np.errstate(invalid="ignore", divide="ignore"):
            return count / (together - count)

    observed = jaccard(np.array([both, *null.interval()], dtype=np.float64))
    return PairOverlap(
        layer=layer,
        width=width,
        first=sizes[0],
        second=sizes[1],
        both=both,
        both_chance=null.mean,
        jaccard=float(observed[0]),
        jaccard_chance=null.expected(jaccard),
        jaccard_low=float(observed[1]),
        jaccard_high=float(observed[2]),
        overlap=both / smaller if smaller else float("nan"),
        overlap_chance=null.mean / smaller if smaller else float("nan"),
        p_more=null.at_least(both),
        p_fewer=null.at_most(both),
    )


def pair_overlap(
    first: NeuronSet, second: NeuronSet, names: tuple[str, str] = ("first", "second")
) -> tuple[PairOverlap, list[PairOverlap]]:
    """Two sets over the whole model, and in each layer.

    Args:
        first: a set.
        second: another, of the same model shape.
        names: how errors call them.

    Raises:
        SafeNeuronError: the shapes differ, or a set is empty.
    """
    widths = common_widths(dict(zip(_apart(names), (first, second), strict=True)))
    counts = np.stack([first.counts(), second.counts()], axis=1).tolist()
    both = (first & second).counts().tolist()
    nulls = [hypergeometric(n, a, b) for n, (a, b) in zip(widths, counts, strict=True)]
    layers = [
        _pair(layer, widths[layer], (a, b), both[layer], nulls[layer])
        for layer, (a, b) in enumerate(counts)
    ]
    sizes = (len(first), len(second))
    return _pair(None, sum(widths), sizes, sum(both), total(nulls)), layers


def _apart(names: tuple[str, str]) -> tuple[str, str]:
    return names if names[0] != names[1] else (names[0], f"{names[1]} (2)")


def overlap_by_layer(first: NeuronSet, second: NeuronSet) -> pd.DataFrame:
    """:class:`PairOverlap` of each layer, one row each."""
    return pd.DataFrame([asdict(row) for row in pair_overlap(first, second)[1]])


def overlap_table(sets: Mapping[str, NeuronSet], by_layer: bool = False) -> pd.DataFrame:
    """Every pair of sets.

    Args:
        sets: name -> set, all of one model shape.
        by_layer: a row for each layer besides the one for all.

    Returns:
        Columns ``a`` and ``b`` (names) and those of :class:`PairOverlap`; ``layer`` is
        missing (NA) in the row for all layers.

    Raises:
        SafeNeuronError: fewer than two sets, sets of different shapes, or an empty one.
    """
    if len(sets) < 2:
        raise SafeNeuronError("overlap needs at least two masks or scores; name one more")
    rows = []
    for a, b in combinations(sets, 2):
        whole, layers = pair_overlap(sets[a], sets[b], (a, b))
        rows += [{"a": a, "b": b} | asdict(row) for row in [whole, *(layers if by_layer else [])]]
    table = pd.DataFrame(rows)
    table["layer"] = table["layer"].astype("Int64")
    return table
