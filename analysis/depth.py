"""Where in depth the neurons are, for models of any number of layers (SafeNeuron, Fig. 4)."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

BINS = 20


def depth_table(sets: Mapping[str, NeuronSet]) -> pd.DataFrame:
    """Fraction of each layer that is in each set, by depth.

    Args:
        sets: model -> its set; shapes may differ.

    Returns:
        Columns ``model``, ``layer``, ``depth`` (layer over the last layer's number, 0 to 1),
        ``neurons``, ``width`` and ``fraction`` (NaN for a layer without an MLP).

    Raises:
        SafeNeuronError: an empty set.
    """
    rows = []
    for name, neurons in sets.items():
        if not len(neurons):
            raise SafeNeuronError(f"{name} names no neurons, so it has no depth")
        last = max(len(neurons.widths) - 1, 1)
        for layer, (count, width) in enumerate(zip(neurons.counts(), neurons.widths, strict=True)):
            rows.append(
                {
                    "model": name,
                    "layer": layer,
                    "depth": layer / last,
                    "neurons": int(count),
                    "width": width,
                    "fraction": count / width if width else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def by_depth(table: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """Models against equal steps of depth: the fraction at the nearest layer.

    Args:
        table: as :func:`depth_table` gives it.
        bins: steps from 0 to 1.

    Returns:
        Index ``model``, one column a depth (its middle), values the fraction.
    """
    middles = (np.arange(bins) + 0.5) / bins
    rows = {}
    for name, part in table.dropna(subset="fraction").groupby("model", sort=False):
        nearest = np.abs(part["depth"].to_numpy()[:, None] - middles).argmin(axis=0)
        rows[name] = part["fraction"].to_numpy()[nearest]
    return pd.DataFrame.from_dict(rows, orient="index", columns=np.round(middles, 4))


def centre_of_mass(table: pd.DataFrame) -> "pd.Series[float]":
    """Mean depth of each model's neurons, 0 at the first layer and 1 at the last."""
    weighted = (table["depth"] * table["neurons"]).groupby(table["model"], sort=False).sum()
    centres: pd.Series[float] = weighted / table.groupby("model", sort=False)["neurons"].sum()
    return centres
