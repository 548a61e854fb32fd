"""The score table: one row a neuron, every score of the paper, as a DataFrame."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.scores.activation_shift import activation_shift, shift
from analysis.scores.effect_size import effect_size, pooled_std
from toolkit.capture.moments import LayerMoments

SCORES = ("es", "sas")


def score_table(harmful: LayerMoments, harmless: LayerMoments) -> pd.DataFrame:
    """Score every neuron.

    Args:
        harmful: moments of each layer over the harmful prompts.
        harmless: the same over the harmless ones.

    Returns:
        Columns ``layer``, ``neuron``, ``mean_harmful``, ``mean_harmless``, ``pooled_std``
        and ``delta`` (activation units), ``es`` (pooled deviations), ``sas`` (z within
        the layer); sorted by layer and neuron.
    """
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
                    "es": effect_size(unsafe, safe),
                    "sas": activation_shift(unsafe, safe) if width else np.empty(0),
                }
            )
        )
    return pd.concat(layers, ignore_index=True)


def widths_of(table: pd.DataFrame, layers: int) -> list[int]:
    """Neurons in each of the model's layers, as the table has them."""
    counts = np.bincount(table["layer"].to_numpy(), minlength=layers)
    return [int(count) for count in counts]


def column(table: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    """One score as a flat vector over all neurons, ``[neurons]``."""
    return table[name].to_numpy(dtype=np.float64)
