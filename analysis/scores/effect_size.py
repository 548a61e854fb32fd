"""Activation Effect Size (SafeNeuron, Sec. 3.2, Eq. 4-7): Cohen's d of one neuron."""

import numpy as np

from analysis.scores.registry import score
from toolkit.capture.moments import Moments, Vector


def pooled_std(harmful: Moments, harmless: Moments) -> Vector:
    """Pooled standard deviation over both prompt sets, ``[width]`` (Eq. 6).

    Each set's sum of squared deviations over ``n_u + n_s - 2`` degrees of freedom.
    """
    freedom = harmful.count + harmless.count - 2
    if freedom < 1:
        return np.full_like(harmful.mean, np.nan)
    return np.sqrt((harmful.m2 + harmless.m2) / freedom)


@score(
    "es",
    reads="moments",
    title="Cohen's d, shift over the pooled deviation",
    source="SafeNeuron, Eq. 4-7",
    tau=2.0,
)
def effect_size(harmful: Moments, harmless: Moments) -> Vector:
    """Cohen's d of each neuron of a layer, ``[width]``, in pooled deviations (Eq. 5).

    Positive where the neuron is more active on harmful prompts. A neuron that never
    varies has d = 0 when its means agree and +/-inf when they don't.
    """
    difference = harmful.mean - harmless.mean
    deviation = pooled_std(harmful, harmless)
    with np.errstate(divide="ignore", invalid="ignore"):
        d = difference / deviation
    return np.where((deviation == 0) & (difference == 0), 0.0, d)
