"""The score table: one row a neuron, one column a score, as a DataFrame."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.scores.activation_shift import shift
from analysis.scores.effect_size import pooled_std
from analysis.scores.registry import evaluate, find_score
from toolkit.capture.moments import LayerMoments, Vector

ALWAYS = ("es", "sas", "t")
"""Scores that every table has: they cost nothing once the moments are there."""


@dataclass(frozen=True)
class Scored:
    """One score of every neuron, ``[neurons]`` each, layer after layer.

    Args:
        values: the score.
        p: one-sided p-values, where the score has any.
        low, high: the ends of a bootstrap interval, where one was asked for.
    """

    values: Vector
    p: Vector | None = None
    low: Vector | None = None
    high: Vector | None = None

    def columns(self, name: str) -> dict[str, Vector]:
        """As columns of the table: ``name``, ``name_p``, ``name_low``, ``name_high``."""
        parts = {"": self.values, "_p": self.p, "_low": self.low, "_high": self.high}
        return {name + end: part for end, part in parts.items() if part is not None}

    def minus(self, other: "Scored") -> "Scored":
        """Safety minus utility: the difference of two scores on one scale, without a p-value."""
        return Scored(self.values - other.values)


def score_table(
    harmful: LayerMoments, harmless: LayerMoments, scores: Mapping[str, Scored] | None = None
) -> pd.DataFrame:
    """Score every neuron.

    Args:
        harmful: moments of each layer over the harmful prompts.
        harmless: the same over the harmless ones.
        scores: further scores by name, in the order of the neurons.

    Returns:
        Columns ``layer``, ``neuron``, ``mean_harmful``, ``mean_harmless``, ``pooled_std``
        and ``delta`` (activation units), ``es`` (pooled deviations), ``sas`` (z within
        the layer), ``t`` and its p-value ``t_p``, then the further scores; sorted by layer
        and neuron.
    """
    widths = [len(layer.mean) for layer in harmful]
    layers = []
    for layer, (unsafe, safe) in enumerate(zip(harmful, harmless, strict=True)):
        width = len(unsafe.mean)
        layers.append(
            pd.DataFrame(
                {
                    "layer": np.full(width, layer, dtype=np.int32),
                    "neuron": np.arange(width, dtype=np.int32),
                    "mean_harmful": unsafe.mean,
                    "mean_harmless": safe.mean,
                    "pooled_std": pooled_std(unsafe, safe),
                    "delta": shift(unsafe, safe),
                }
            )
        )
    columns: dict[str, Vector] = {}
    for name in ALWAYS:
        columns |= score_moments(name, harmful, harmless, widths).columns(name)
    for name, scored in (scores or {}).items():
        columns |= scored.columns(name)
    return pd.concat(layers, ignore_index=True).assign(**columns)


def score_moments(
    name: str, harmful: LayerMoments, harmless: LayerMoments, widths: list[int]
) -> Scored:
    """One score that reads moments, of every neuron."""
    found = find_score(name)
    sides = (harmful, harmless)
    p = None if found.p_value is None else evaluate(found.p_value, name, sides, widths)
    return Scored(evaluate(found.function, name, sides, widths), p)


def widths_of(table: pd.DataFrame, layers: int) -> list[int]:
    """Neurons in each of the model's layers, as the table has them."""
    counts = np.bincount(table["layer"].to_numpy(), minlength=layers)
    return [int(count) for count in counts]


def column(table: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    """One score as a flat vector over all neurons, ``[neurons]``."""
    return table[name].to_numpy(dtype=np.float64)
