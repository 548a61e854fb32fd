"""Chen et al.'s change score (2406.14144): what alignment did to a neuron."""

from analysis.scores.registry import score
from toolkit.capture.moments import Vector


@score(
    "change",
    reads="change",
    title="root mean square difference between the model and its base, on the base's answers",
    source="Chen et al. (2406.14144)",
)
def change(differences: Vector) -> Vector:
    """How far the neuron moved, ``[width]``, in activation units.

    Args:
        differences: as :func:`toolkit.capture.change.rms_change` says.
    """
    return differences
