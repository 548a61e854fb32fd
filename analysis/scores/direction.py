"""Projection on the refusal direction (Arditi et al. 2024): what a neuron writes of it."""

from analysis.scores.registry import score
from toolkit.capture.moments import Vector


@score(
    "direction",
    reads="direction",
    title="dot product of the output column with the unit refusal direction",
    source="Arditi et al. (2406.11717), on neurons",
)
def direction(projections: Vector) -> Vector:
    """How much of the refusal direction a neuron writes when it is at 1, ``[width]``.

    Positive where an active neuron pushes the residual stream towards refusal. It reads
    weights alone once the direction is known: whether the neuron is ever active it does
    not say.
    """
    return projections
