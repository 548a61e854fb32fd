"""Interventions that differ from row to row of one batch.

Attacks differ in little but what they remove, and answer the same prompts. Giving every
row of a batch a plan of its own lets them share batches, instead of one pass over the
prompts for each.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import SafeNeuronError
from toolkit.intervene import Intervention, require_shape
from toolkit.models.load import LoadedModel


@dataclass(frozen=True)
class Plan:
    """What is done to the model while it answers one row.

    Args:
        interventions: on neurons, in the order they are applied.
        direction: ``[hidden]``, projected out of everything the residual stream is given
            (Arditi et al. 2024, Eq. 4); None for nothing.
    """

    interventions: tuple[Intervention, ...] = ()
    direction: Tensor | None = None

    @property
    def empty(self) -> bool:
        """Whether it changes nothing."""
        return self.direction is None and not any(len(i.neurons) for i in self.interventions)


@dataclass
class _LayerTable:
    """What each plan does to one layer's neurons, ``[plans, width]`` each."""

    held: Tensor
    constant: Tensor
    factor: Tensor | None


class RowPlans:
    """Plans for the rows of batches: :meth:`assign` says which row has which.

    Args:
        loaded: the model.
        plans: the plans that rows may have.

    Raises:
        SafeNeuronError: a plan is for a model of another shape.
    """

    def __init__(self, loaded: LoadedModel, plans: Sequence[Plan]) -> None:
        self._loaded, self._count = loaded, len(plans)
        self._tables = _layer_tables(loaded, plans)
        self._directions = _direction_table(loaded, plans)
        self._rows = torch.zeros(1, dtype=torch.long, device=loaded.device)
        self._kept: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._paused = False

    def __len__(self) -> int:
        return self._count

    def assign(self, plans: Sequence[int]) -> None:
        """Say which plan each row of the batch that comes next has."""
        self._set(torch.tensor(list(plans), dtype=torch.long, device=self._loaded.device))

    def keep(self, places: Tensor) -> None:
        """Keep only these rows of the batch, as answers end."""
        self._set(self._rows[places])

    def _set(self, rows: Tensor) -> None:
        self._rows = rows
        self._kept.clear()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Follow the plans in every forward pass inside the ``with`` block."""
        handles = []
        model, layout = self._loaded.model, self._loaded.layout
        try:
            for layer in self._tables:

                def before(_: nn.Module, inputs: tuple[Any, ...], layer: int = layer) -> Any:
                    return self._apply(layer, inputs[0]), *inputs[1:]

                handles.append(layout.down(model, layer).register_forward_pre_hook(before))
            if self._directions is not None:
                # What the first block is given: token, position and any other embedding.
                first = model.get_submodule(layout.blocks)[0]
                handles.append(
                    first.register_forward_pre_hook(self._project_input, with_kwargs=True)
                )
                for module in residual_writers(self._loaded):
                    handles.append(module.register_forward_hook(self._project_output))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the model run whole inside the ``with`` block, hooks and all."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _apply(self, layer: int, activations: Tensor) -> Tensor:
        if self._paused:
            return activations
        if layer not in self._kept:
            table = self._tables[layer]
            factor = None if table.factor is None else table.factor[self._rows, None]
            # In the activations' type, which autocast makes another than the model's.
            constant = table.constant[self._rows, None].to(activations.dtype)
            self._kept[layer] = (table.held[self._rows, None], constant, factor)
        held, constant, factor = self._kept[layer]
        # OPT flattens batch and tokens into one dimension; the rest keep both.
        shaped = activations.reshape(len(self._rows), -1, activations.shape[-1])
        if factor is not None:
            shaped = shaped * factor
        return torch.where(held, constant, shaped).reshape(activations.shape)

    def _project_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (self._project(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self._project(kwargs["hidden_states"])}

    def _project_output(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._project(output[0]), *output[1:])
        return self._project(output)

    def _project(self, values: Tensor) -> Tensor:
        assert self._directions is not None
        if self._paused:
            return values
        unit = self._directions[self._rows, None]
        shaped = values.reshape(len(self._rows), -1, values.shape[-1])
        left = shaped - (shaped * unit).sum(dim=-1, keepdim=True) * unit
        return left.to(values.dtype).reshape(values.shape)


def _layer_tables(loaded: LoadedModel, plans: Sequence[Plan]) -> dict[int, _LayerTable]:
    tables: dict[int, _LayerTable] = {}
    like = {"dtype": loaded.model.dtype, "device": loaded.device}
    for place, plan in enumerate(plans):
        for intervention in plan.interventions:
            require_shape(loaded.layout, intervention.neurons)
            for layer, indices in intervention.neurons.layers().items():
                shape = (len(plans), loaded.layout.widths[layer])
                if layer not in tables:
                    tables[layer] = _LayerTable(
                        torch.zeros(shape, dtype=torch.bool, device=loaded.device),
                        torch.zeros(shape, **like),
                        None,
                    )
                table = tables[layer]
                chosen = torch.from_numpy(indices.copy()).to(loaded.device)
                if intervention.action == "scale":
                    if table.factor is None:
                        table.factor = torch.ones(shape, **like)
                    table.factor[place, chosen] *= intervention.value
                    table.constant[place, chosen] *= intervention.value
                else:
                    held = intervention.value if intervention.action == "hold" else 0.0
                    table.held[place, chosen] = True
                    table.constant[place, chosen] = held
    return tables


def _direction_table(loaded: LoadedModel, plans: Sequence[Plan]) -> Tensor | None:
    """Unit directions ``[plans, hidden]`` in float32, zero where a plan has none."""
    given = [plan.direction for plan in plans if plan.direction is not None]
    if not given:
        return None
    table = torch.zeros((len(plans), len(given[0])), device=loaded.device)
    for place, plan in enumerate(plans):
        if plan.direction is not None:
            direction = plan.direction.float().to(loaded.device)
            norm = direction.norm()
            if not torch.isfinite(norm) or norm == 0:
                raise SafeNeuronError("a direction to ablate must be finite and not zero")
            table[place] = direction / norm
    return table


def residual_writers(loaded: LoadedModel) -> list[nn.Module]:
    """The modules in the blocks whose outputs are added into the residual stream.

    In every block what attention and the MLP give back: their last normalisation where
    the block has one, else attention itself and the down projection.

    Raises:
        SafeNeuronError: a block's attention can't be found.
    """
    found: list[nn.Module] = []
    layout = loaded.layout
    for layer, block in enumerate(loaded.model.get_submodule(layout.blocks)):
        children = dict(block.named_children())
        # Gemma 2 and 3 normalise what attention and the MLP give before it is added.
        if "post_feedforward_layernorm" in children:
            found += [
                children["post_attention_layernorm"],
                children["post_feedforward_layernorm"],
            ]
            continue
        names = [name for name in children if _is_attention(name)]
        if len(names) != 1:
            raise SafeNeuronError(
                f"{layout.architecture}: block {layer} has no single attention module, so a "
                "direction can't be ablated on it"
            )
        found += [children[names[0]], layout.down(loaded.model, layer)]
    return found


def _is_attention(name: str) -> bool:
    return ("attn" in name or "attention" in name) and "norm" not in name and "drop" not in name
