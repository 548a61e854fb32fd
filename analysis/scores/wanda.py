"""Wanda on neurons (Wei et al. 2402.05162): weights times the size of their inputs."""

from analysis.scores.registry import score
from toolkit.capture.moments import Vector


@score(
    "wanda",
    reads="wanda",
    title="|weight| times its input's root mean square, summed over the neuron's weights",
    source="Wei et al. (2402.05162), Wanda",
)
def wanda(importances: Vector) -> Vector:
    """Sum over the neuron's matrices, ``[width]``.

    Measured on harmful prompts it is what refusing needs, of much that everything needs:
    ``wanda-utility`` takes away what harmless prompts need as well.

    Args:
        importances: ``[matrices, width]``, as :func:`toolkit.capture.weights.wanda` says.
    """
    total: Vector = importances.sum(axis=0)
    return total
