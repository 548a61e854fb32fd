"""A neuron mask as a hook list for TransformerLens 4, exported by SafeNeuron.

Put this file where Python finds it, then

    with bridge.hooks(fwd_hooks=fwd_hooks()):
        logits = bridge(tokens)

runs a ``TransformerBridge`` with the mask's neurons at zero (or at ``value``) in every forward
pass. ``ABOUT`` says which model the mask is of and how it was made.
"""

from collections.abc import Callable
from typing import Any

ABOUT: dict[str, Any] = {}
NEURONS: dict[int, list[int]] = {}

Hook = Callable[[Any, Any], Any]


def fwd_hooks(value: float = 0.0) -> list[tuple[str, Hook]]:
    """Hook point and hook for each layer that has neurons of the mask."""
    return [
        # The input of the down projection, where element j is neuron j.
        (f"blocks.{layer}.mlp.out.hook_in", _holding(indices, value))
        for layer, indices in NEURONS.items()
    ]


def _holding(indices: list[int], value: float) -> Hook:
    def hook(activations: Any, hook: Any) -> Any:
        changed = activations.clone()
        changed[..., indices] = value
        return changed

    return hook
