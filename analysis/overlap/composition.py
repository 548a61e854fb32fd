"""What a model's topics have in common, layer by layer (SafeNeuron, Sec. 4.5, Fig. 3).

Core: neurons in every topic's set. Shared: in several, not in all. Specific: in one alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.overlap.chance import common_widths, intersection, layer_counts, total
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

CLASSES = ("core", "shared", "specific")


@dataclass(frozen=True)
class Composition:
    """Neurons of several topics by how many topics they serve.

    Args:
        topics: names, in order.
        core, shared, specific: the neurons of each class; disjoint, together the union.
        layers: one row a layer: ``layer``, ``width``, and for each class its number, its
            ``*_share`` of the layer's union (NaN where that is empty) and its expected
            number under chance, ``*_chance``.
        p_core: exact p-value of so many core neurons or more, over the model.
    """

    topics: tuple[str, ...]
    core: NeuronSet
    shared: NeuronSet
    specific: NeuronSet
    layers: pd.DataFrame
    p_core: float

    def totals(self) -> pd.DataFrame:
        """One row a class: ``neurons``, ``share`` of the union, ``chance`` (expected)."""
        counts = {name: int(self.layers[name].sum()) for name in CLASSES}
        union = sum(counts.values())
        return pd.DataFrame(
            [
                {
                    "class": name,
                    "neurons": count,
                    "share": count / union,
                    "chance": float(self.layers[f"{name}_chance"].sum()),
                }
                for name, count in counts.items()
            ]
        )


def composition(sets: Mapping[str, NeuronSet]) -> Composition:
    """Class every neuron of several topics' sets, and count what chance would give.

    Args:
        sets: topic -> set, all of one model shape.

    Raises:
        SafeNeuronError: fewer than two topics, sets of different shapes, or an empty one.
    """
    if len(sets) < 2:
        raise SafeNeuronError(
            f"core and shared neurons need at least two topics, not {len(sets)}; give prompts of "
            "several categories"
        )
    named = dict(sets)
    widths = common_widths(named)
    times = np.sum([np.concatenate(s.masks()) for s in named.values()], axis=0)
    cuts = np.cumsum(widths)[:-1]
    found = {
        "core": times == len(named),
        "shared": (times > 1) & (times < len(named)),
        "specific": times == 1,
    }
    classes = {name: NeuronSet.from_masks(np.split(mask, cuts)) for name, mask in found.items()}
    rows = pd.DataFrame({"layer": np.arange(len(widths)), "width": widths})
    union = sum(neurons.counts() for neurons in classes.values())
    chance = _chance(np.array(widths, dtype=np.float64), layer_counts(named))
    for name, neurons in classes.items():
        counts = neurons.counts()
        rows[name] = counts
        rows[f"{name}_share"] = np.divide(
            counts, union, out=np.full(len(widths), np.nan), where=union > 0
        )
        rows[f"{name}_chance"] = chance[name]
    sizes = layer_counts(named)
    null = total([intersection(n, sizes[:, i].tolist()) for i, n in enumerate(widths)])
    return Composition(
        topics=tuple(named),
        layers=rows,
        p_core=null.at_least(len(classes["core"])),
        **classes,
    )


def _chance(
    widths: np.ndarray[tuple[int], np.dtype[np.float64]],
    sizes: np.ndarray[tuple[int, int], np.dtype[np.int64]],
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Expected neurons of each class in each layer, of random sets of the same sizes.

    A neuron is in set k with probability size over width, independently of the others; so
    the number of its sets is Poisson-binomial.
    """
    p = np.divide(sizes, widths, out=np.zeros(sizes.shape), where=widths > 0)
    core = widths * p.prod(axis=0)
    one = np.zeros(len(widths))
    for k in range(len(p)):
        one += p[k] * np.delete(1 - p, k, axis=0).prod(axis=0)
    union = widths * (1 - (1 - p).prod(axis=0))
    return {"core": core, "shared": union - core - widths * one, "specific": widths * one}
