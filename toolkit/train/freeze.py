"""Freezing neurons exactly while everything else trains.

Masking gradients alone does not freeze: AdamW's weight decay moves masked entries too, and
so would the momentum of an optimiser resumed with other masks. So the gradient is masked
as it arrives (then the reported norm and clipping are those of what trains, accumulated or
averaged over processes as it may be) and the entries are put back, bit for bit, after every
optimiser step (paper Sec. 3.3; Algorithm 1, step 3).

With LoRA it is the adapter's delta that is masked. A neuron's row of gate or up changes by
its row of ``B`` times ``A``, its column of down by ``B`` times its column of ``A``: those
are held at zero, so the delta of a frozen neuron is exactly zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from toolkit.errors import SafeNeuronError
from toolkit.models.layout import Layout, is_conv1d, neuron_slices
from toolkit.neurons import NeuronSet

ADAPTER = "default"


@dataclass
class FrozenSlice:
    """Frozen entries of one parameter: ``indices`` along ``dim``, and their values.

    What is written and compared is this process's part of the parameter: all of it, but
    for parameters that FSDP has split by rows.
    """

    name: str
    dim: int
    indices: Tensor
    values: Tensor
    parameter: nn.Parameter

    @property
    def numel(self) -> int:
        """How many numbers of the whole parameter are frozen."""
        return self.values.numel()

    def bind(self, parameter: nn.Parameter) -> None:
        """Go on with the parameter that really trains, which FSDP makes anew."""
        device = parameter.device
        self.parameter = parameter
        self.indices, self.values = self.indices.to(device), self.values.to(device)
        self._here, self._kept = self.indices, self.values
        if isinstance(parameter, DTensor):
            start, rows = rows_here(parameter)
            if self.dim == 0:
                mine = (self.indices >= start) & (self.indices < start + rows)
                self._here, self._kept = self.indices[mine] - start, self.values[mine]
            else:
                self._kept = self.values[start : start + rows]

    def mask(self, parameter: Tensor) -> None:
        """Zero the frozen entries of the gradient, in place."""
        if parameter.grad is not None:
            local_part(parameter.grad).index_fill_(self.dim, self._here, 0.0)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the frozen entries back, bit for bit."""
        local_part(self.parameter.data).index_copy_(self.dim, self._here, self._kept)

    def moved(self) -> bool:
        """Whether any frozen entry differs from its start."""
        now = local_part(self.parameter.detach()).index_select(self.dim, self._here)
        return not torch.equal(now, self._kept)


def local_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: all of it, unless FSDP has split it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows_here(parameter: DTensor) -> tuple[int, int]:
    """First row and number of rows of a split parameter that are in this process.

    Raises:
        SafeNeuronError: it is split otherwise than by whole rows.
    """
    split = [dim for dim, place in enumerate(parameter.placements) if not place.is_replicate()]
    local = parameter.to_local()
    if not split:
        return 0, len(local)
    if len(split) > 1 or parameter.placements[split[0]] != Shard(0):
        raise SafeNeuronError(
            "neurons can't be frozen exactly in weights that are split by columns; train with "
            "data parallelism or FSDP2 alone"
        )
    rank = parameter.device_mesh.get_local_rank(split[0])
    # As torch.chunk cuts: full chunks first, the last ones short or empty.
    chunk = -(-parameter.shape[0] // parameter.device_mesh.size(split[0]))
    return min(rank * chunk, parameter.shape[0]), len(local)


class FrozenNeurons:
    """Every weight of a neuron set, held where it was.

    Args:
        model: the model about to be trained; where it carries a LoRA adapter, that is
            masked and the weights below it are watched.
        layout: where its neurons are.
        neurons: which to freeze: rows of the gate and up projections with their biases,
            columns of the down projection.

    Raises:
        SafeNeuronError: the set has another shape than the model.
    """

    def __init__(self, model: nn.Module, layout: Layout, neurons: NeuronSet) -> None:
        if list(neurons.widths) != layout.widths:
            raise SafeNeuronError("the mask is for a model of another shape")
        self.weights: list[FrozenSlice] = []
        self.deltas: list[FrozenSlice] = []
        for name, dim, indices in _places(layout, neurons):
            found = _parameter(model, name)
            where = indices.to(found.device)
            values = found.detach().index_select(dim, where).clone()
            self.weights.append(FrozenSlice(name, dim, where, values, found))
            if (delta := _delta(model, name, dim, where)) is not None:
                self.deltas.append(delta)
        self._handles: list[Any] = []
        self.attach(model)
        self.restore()

    @property
    def slices(self) -> list[FrozenSlice]:
        """What training could move: the adapter's entries where there is one."""
        return [s for s in (*self.weights, *self.deltas) if s.parameter.requires_grad]

    @property
    def entries(self) -> int:
        """How many numbers that would train are held."""
        return sum(s.numel for s in self.slices)

    def attach(self, model: nn.Module) -> None:
        """Mask the gradients of the parameters as they are now, by name."""
        self.release()
        for piece in (*self.weights, *self.deltas):
            piece.bind(_parameter(model, piece.name))
        for piece in self.slices:
            # After accumulation: nothing is copied, and DDP averages what is masked.
            hooked: Any = piece.parameter  # torch leaves this untyped
            self._handles.append(hooked.register_post_accumulate_grad_hook(piece.mask))

    def restore(self) -> None:
        """Put all frozen entries back; to be called after every optimiser step."""
        for piece in self.slices:
            piece.restore()

    def verify(self) -> None:
        """Check that every frozen entry is bit-identical to its start.

        Raises:
            SafeNeuronError: one is not.
        """
        moved = [piece.name for piece in (*self.weights, *self.deltas) if piece.moved()]
        if moved:
            raise SafeNeuronError(f"frozen entries of {moved[0]} moved; the run is not valid")

    def verify_merged(self, model: nn.Module) -> None:
        """Check the weights after an adapter was merged into them.

        Raises:
            SafeNeuronError: a frozen entry differs from its start.
        """
        self.deltas = []
        for piece in self.weights:
            piece.bind(_parameter(model, piece.name))
        self.verify()
        # Minus zero plus a delta of zero is plus zero: equal, but not the same bits.
        for piece in self.weights:
            piece.restore()

    def release(self) -> None:
        """Stop masking gradients."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _places(layout: Layout, neurons: NeuronSet) -> Iterator[tuple[str, int, Tensor]]:
    """Parameter, dimension and sorted indices of every frozen entry."""
    # Fused projections hold two pieces of a neuron in one parameter: join them.
    chosen: dict[tuple[str, int], list[Tensor]] = {}
    for layer, piece in neuron_slices(layout):
        indices = torch.from_numpy(neurons.layer(layer).copy())
        if len(indices):
            place = (piece.parameter, piece.dim)
            chosen.setdefault(place, []).append(indices + piece.offset)
    for (name, dim), parts in chosen.items():
        yield name, dim, torch.cat(parts).sort().values


def _base(model: nn.Module) -> nn.Module:
    """The model whose names the layout knows, out of a PEFT wrapper if it is in one."""
    base: Any = getattr(model, "get_base_model", None)
    return model if base is None else base()


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    """A parameter by its name in the plain model; PEFT's layers hand on the one below."""
    path, _, leaf = name.rpartition(".")
    found = getattr(_base(model).get_submodule(path), leaf)
    assert isinstance(found, nn.Parameter)
    return found


def _delta(model: nn.Module, name: str, dim: int, indices: Tensor) -> FrozenSlice | None:
    """The adapter's entries that move a parameter's frozen ones, to be held at zero."""
    path, _, leaf = name.rpartition(".")
    module = _base(model).get_submodule(path)
    if leaf != "weight" or not hasattr(module, "lora_A"):
        return None
    written = dim == (1 if is_conv1d(module.get_submodule("base_layer")) else 0)
    side, along = ("lora_B", 0) if written else ("lora_A", 1)
    entry = f"{path}.{side}.{ADAPTER}.weight"
    parameter = _parameter(model, entry)
    values = torch.zeros_like(parameter.detach().index_select(along, indices))
    return FrozenSlice(entry, along, indices, values, parameter)
