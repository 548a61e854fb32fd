"""SN-Tune's importance (Zhao et al., ICLR 2025): what every harmful prompt needs."""

import numpy as np
import numpy.typing as npt

from analysis.scores.registry import score
from toolkit.capture.moments import Vector


@score(
    "sntune",
    reads="contributions",
    title="least change of the layer's output over the prompts when the neuron is removed",
    source="SN-Tune (Zhao et al., ICLR 2025)",
)
def sntune(contributions: npt.NDArray[np.floating]) -> Vector:
    """The smallest importance over the prompts, ``[width]``, in units of the residual stream.

    A neuron's importance on a prompt is ``||h - h without it||_2``, over the message's own
    tokens. SN-Tune takes the neurons whose importance is at least eps on every prompt: the
    smallest is above eps just for those.

    Args:
        contributions: ``[prompts, width]``, those norms.
    """
    least: Vector = contributions.min(axis=0).astype(np.float64)
    return least
