"""Freezing neurons exactly while everything else trains.

Masking gradients alone does not freeze: AdamW's weight decay moves masked entries too, and
so would the momentum of an optimiser resumed with other masks. So the gradient is masked
(that the reported norm and clipping are those of what trains) and the entries are put back
after every optimiser step (paper Sec. 3.3; Algorithm 1, step 3).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import SafeNeuronError
from toolkit.models.layout import Layout, neuron_slices
from toolkit.neurons import NeuronSet


@dataclass(frozen=True)
class FrozenSlice:
    """The frozen entries of one parameter: ``indices`` along ``dim``, and their values."""

    name: str
    parameter: nn.Parameter
    dim: int
    indices: Tensor
    values: Tensor

    def mask(self, gradient: Tensor) -> Tensor:
        """The gradient with the frozen entries at zero."""
        return gradient.index_fill(self.dim, self.indices, 0.0)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the frozen entries back, bit for bit."""
        self.parameter.index_copy_(self.dim, self.indices, self.values)

    def moved(self) -> bool:
        """Whether any frozen entry differs from its start."""
        now = self.parameter.detach().index_select(self.dim, self.indices)
        return not torch.equal(now, self.values)


class FrozenNeurons:
    """Every weight of a neuron set, held where it was.

    Args:
        model: the model about to be trained.
        layout: where its neurons are.
        neurons: which to freeze: rows of the gate and up projections with their biases,
            columns of the down projection.

    Raises:
        SafeNeuronError: the set has another shape than the model.
    """

    def __init__(self, model: nn.Module, layout: Layout, neurons: NeuronSet) -> None:
        if list(neurons.widths) != layout.widths:
            raise SafeNeuronError("the mask is for a model of another shape")
        # Fused projections hold two pieces of a neuron in one parameter: join them.
        chosen: dict[tuple[str, int], list[Tensor]] = {}
        for layer, piece in neuron_slices(layout):
            indices = torch.from_numpy(neurons.layer(layer).copy())
            if len(indices):
                place = (piece.parameter, piece.dim)
                chosen.setdefault(place, []).append(indices + piece.offset)
        self.slices: list[FrozenSlice] = []
        for (name, dim), parts in chosen.items():
            parameter = model.get_parameter(name)
            where = torch.cat(parts).sort().values.to(parameter.device)
            values = parameter.detach().index_select(dim, where).clone()
            self.slices.append(FrozenSlice(name, parameter, dim, where, values))
        hooked: list[Any] = [s.parameter for s in self.slices]  # torch leaves this untyped
        self._handles = [p.register_hook(s.mask) for p, s in zip(hooked, self.slices, strict=True)]

    @property
    def entries(self) -> int:
        """How many numbers are frozen."""
        return sum(s.values.numel() for s in self.slices)

    def restore(self) -> None:
        """Put all frozen entries back; to be called after every optimiser step."""
        for piece in self.slices:
            piece.restore()

    def verify(self) -> None:
        """Check that every frozen entry is bit-identical to its start.

        Raises:
            SafeNeuronError: one is not.
        """
        if moved := [piece.name for piece in self.slices if piece.moved()]:
            raise SafeNeuronError(f"frozen entries of {moved[0]} moved; the run is not valid")

    def release(self) -> None:
        """Stop masking gradients."""
        for handle in self._handles:
            handle.remove()
