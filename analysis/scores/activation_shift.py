"""Safety Activation Shift (SafeNeuron, Sec. 3.2, Eq. 9): a shift against its layer's."""

import numpy as np

from analysis.scores.registry import score
from toolkit.capture.moments import Moments, Vector


def shift(harmful: Moments, harmless: Moments) -> Vector:
    """Mean activation on harmful minus on harmless prompts, ``[width]``."""
    return harmful.mean - harmless.mean


@score(
    "sas",
    reads="moments",
    title="z-score of the shift among the layer's neurons",
    source="SafeNeuron, Eq. 9",
    tau=2.0,
    rising=True,
)
def activation_shift(harmful: Moments, harmless: Moments) -> Vector:
    """z-score of each neuron's shift among the neurons of its layer, ``[width]``.

    The deviation is the population's (divided by the layer's width), since all of the
    layer's neurons are there. A layer whose neurons all shift alike has z = 0.
    """
    delta = shift(harmful, harmless)
    deviation = delta.std()
    if deviation == 0:
        return np.zeros_like(delta)
    z: Vector = (delta - delta.mean()) / deviation
    return z
