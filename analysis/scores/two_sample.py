"""Student's two-sample t: the statistic that SafeNeuron's Theorem 3.1 is about."""

import numpy as np

from analysis.scores.effect_size import effect_size
from analysis.scores.registry import score
from toolkit.capture.moments import Moments, Vector


def two_sample_p(harmful: Moments, harmless: Moments) -> Vector:
    """p-values that a neuron is no more active on harmful prompts, one-sided, ``[width]``.

    Exact for normal activations of one variance; a neuron that never varies has 0.5 where
    its means agree and 0 or 1 where they don't.
    """
    from scipy.special import stdtr

    p: Vector = stdtr(harmful.count + harmless.count - 2, -two_sample_t(harmful, harmless))
    return p


@score(
    "t",
    reads="moments",
    title="Student's t of two samples with pooled variance",
    source="SafeNeuron, Theorem 3.1",
    p_value=two_sample_p,
)
def two_sample_t(harmful: Moments, harmless: Moments) -> Vector:
    """Student's t of each neuron of a layer, ``[width]``.

    It is Cohen's d times sqrt(nm / (n + m)) for n and m prompts, so it ranks as ES does;
    unlike d it grows with the number of prompts, and has a p-value.
    """
    n, m = harmful.count, harmless.count
    t: Vector = effect_size(harmful, harmless) * np.sqrt(n * m / (n + m))
    return t
