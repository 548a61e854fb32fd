"""SNIP on neurons (Wei et al. 2402.05162): weights times the loss's gradient."""

from analysis.scores.registry import score
from toolkit.capture.moments import Vector


@score(
    "snip",
    reads="snip",
    title="|weight times gradient of the answer's loss|, summed over the neuron's weights",
    source="Wei et al. (2402.05162), SNIP",
)
def snip(importances: Vector) -> Vector:
    """Sum over the neuron's matrices, ``[width]``, in nats.

    Measured on harmful prompts and refusals; ``snip-utility`` takes away what harmless
    prompts and their answers need as well.

    Args:
        importances: ``[matrices, width]``, as :func:`toolkit.capture.weights.snip` says.
    """
    total: Vector = importances.sum(axis=0)
    return total
