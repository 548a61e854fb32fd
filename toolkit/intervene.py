"""Doing something to a set of neurons: zero, hold at a constant, scale.

As a context manager on a running model, or written into the weights (zero and scale;
holding at a constant needs a hook). SafeNeuron's attack is :func:`intervene` with zero
(paper Sec. 4.1); peers show that holding at a constant can be stronger (2605.08513).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toolkit.errors import SafeNeuronError
from toolkit.models.layout import Layout
from toolkit.neurons import NeuronSet


@dataclass(frozen=True)
class Intervention:
    """A neuron set and what to do to it.

    Args:
        neurons: which.
        action: ``zero``; ``hold`` at ``value``; ``scale`` by ``value``.
        value: the constant or the factor; not used by ``zero``.
    """

    neurons: NeuronSet
    action: Literal["zero", "hold", "scale"] = "zero"
    value: float = 0.0

    def apply(self, activations: Tensor, indices: Tensor) -> Tensor:
        """Return ``[..., width]`` activations with those of ``indices`` changed."""
        if self.action == "scale":
            return activations.index_copy(-1, indices, activations[..., indices] * self.value)
        return activations.index_fill(-1, indices, 0.0 if self.action == "zero" else self.value)


def require_shape(layout: Layout, neurons: NeuronSet) -> None:
    """Check that a set is for this model.

    Raises:
        SafeNeuronError: it is for a model of another shape.
    """
    if list(neurons.widths) != layout.widths:
        raise SafeNeuronError(
            f"the neuron set is for {len(neurons.widths)} layers of {neurons.total} neurons, the "
            f"model has {len(layout.widths)} layers of {sum(layout.widths)}"
        )


@contextmanager
def intervene(model: nn.Module, layout: Layout, intervention: Intervention) -> Iterator[None]:
    """Change the neurons' activations in every forward pass inside the ``with`` block.

    Gradients flow through the unchanged neurons and are exactly zero at zeroed or held
    ones.

    Raises:
        SafeNeuronError: the set is for a model of another shape.
    """
    require_shape(layout, intervention.neurons)
    handles = []
    try:
        for layer, indices in intervention.neurons.layers().items():
            chosen = torch.from_numpy(indices.copy()).to(next(model.parameters()).device)

            def hook(
                _: nn.Module, inputs: tuple[Any, ...], chosen: Tensor = chosen
            ) -> tuple[Any, ...]:
                return intervention.apply(inputs[0], chosen), *inputs[1:]

            handles.append(layout.down(model, layer).register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def write_into_weights(model: nn.Module, layout: Layout, intervention: Intervention) -> None:
    """Make a zero or scale intervention permanent, in place.

    Only the neurons' columns of the down projection change: a neuron reaches the rest of
    the model through them alone.

    Raises:
        SafeNeuronError: the set has another shape, or the action is ``hold``.
    """
    require_shape(layout, intervention.neurons)
    if intervention.action == "hold":
        raise SafeNeuronError("holding neurons at a constant can't be written into the weights")
    factor = 0.0 if intervention.action == "zero" else intervention.value
    for layer, indices in intervention.neurons.layers().items():
        piece = layout.sites[layer].slices[0]
        weight = model.get_parameter(piece.parameter)
        chosen = torch.from_numpy(indices.copy()).to(weight.device) + piece.offset
        weight.index_copy_(piece.dim, chosen, weight.index_select(piece.dim, chosen) * factor)
