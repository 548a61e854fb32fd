"""What gradients at the neurons come as. No torch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenMeans:
    """One layer's means over a prompt set at the last tokens, ``[tail, width]`` each.

    Args:
        gradient: of ``-log(p / (1 - p))`` by the neuron, for p the probability that the
            answer opens with a refusal.
        activation: of the neuron.
    """

    gradient: npt.NDArray[np.float64]
    activation: npt.NDArray[np.float64]
