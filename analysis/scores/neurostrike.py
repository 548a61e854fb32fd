"""NeuroStrike's probe (2509.11864): a linear probe for harm on each projection's outputs."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from analysis.scores.registry import score
from toolkit.capture.moments import Vector

if TYPE_CHECKING:
    from torch import Tensor

EPOCHS = 5_000
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-3
TAU = 3.0


@score(
    "neurostrike",
    reads="projections",
    title="z-score of the neuron's weight in a linear probe, the larger of gate and up",
    source="NeuroStrike (2509.11864)",
    tau=TAU,
)
def neurostrike(
    harmful: list[npt.NDArray[np.floating]], harmless: list[npt.NDArray[np.floating]]
) -> Vector:
    """How far each neuron's probe weight stands out, ``[width]``.

    The score is above 3 exactly where NeuroStrike selects: zeroing output j of gate or up
    zeroes neuron j, since the activation functions of all supported families are zero at
    zero; so a neuron is chosen by either projection.

    Args:
        harmful: for each projection its largest outputs, ``[prompts, width]``.
        harmless: the same on the other side.
    """
    import torch

    from toolkit.models.load import pick_device

    scores = []
    for unsafe, safe in zip(harmful, harmless, strict=True):
        values = torch.from_numpy(np.concatenate([unsafe, safe])).to(pick_device())
        labels = torch.zeros(len(values), device=values.device)
        labels[: len(unsafe)] = 1.0
        scores.append(probe_score(values, labels))
    largest: Vector = np.max(scores, axis=0)
    return largest


def probe_score(values: "Tensor", labels: "Tensor", epochs: int = EPOCHS) -> Vector:
    """z-score of each probe weight among its projection's, ``[width]``.

    NeuroStrike selects |z| > 3 where the weight is positive. So the score is |z| where the
    weight is positive, else -|z|; 0 where all weights are alike.
    """
    weight = probe_weights(values, labels, epochs).double().cpu().numpy()
    deviation = weight.std()
    if deviation == 0:
        return np.zeros(len(weight))
    z = np.abs((weight - weight.mean()) / deviation)
    signed: Vector = np.where(weight > 0, z, -z)
    return signed


def probe_weights(values: "Tensor", labels: "Tensor", epochs: int = EPOCHS) -> "Tensor":
    """Weights ``[width]`` of a logistic regression, fitted as NeuroStrike does.

    Adam over all prompts at once, binary cross-entropy, from zero weights.

    Args:
        values: ``[prompts, width]``.
        labels: ``[prompts]``, 1 for harmful.
        epochs: full passes.
    """
    import torch

    weight = torch.zeros(values.shape[1], device=values.device)
    bias = torch.zeros(1, device=values.device)
    # Written out, since all there is to it is X w and X' r; autograd would cost twice that.
    first = [torch.zeros_like(weight), torch.zeros_like(bias)]
    second = [torch.zeros_like(weight), torch.zeros_like(bias)]
    transposed = values.T.contiguous()
    for step in range(1, epochs + 1):
        residual = (torch.sigmoid(values @ weight + bias) - labels) / len(labels)
        for place, (parameter, gradient) in enumerate(
            ((weight, transposed @ residual), (bias, residual.sum(0, keepdim=True)))
        ):
            gradient = gradient + WEIGHT_DECAY * parameter
            first[place].lerp_(gradient, 0.1)
            second[place].lerp_(gradient.square(), 0.001)
            scale = (second[place] / (1 - 0.999**step)).sqrt() + 1e-8
            parameter -= LEARNING_RATE * (first[place] / (1 - 0.9**step)) / scale
    return weight
