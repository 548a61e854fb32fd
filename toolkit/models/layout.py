"""Where the MLP neurons of an architecture are, and which weights belong to one.

A neuron is one element of the input of the MLP's down projection (SafeNeuron, Eq. 3).
Its weights are row j of the gate and up projections, with their biases, and column j of
the down projection. This file knows where those are in the families that it lists; the
rest of the toolkit asks it and never names a module.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from toolkit.errors import SafeNeuronError


@dataclass(frozen=True)
class MlpForm:
    """One way an MLP block is written.

    Args:
        down: the projection whose input is the neuron site.
        into: the projections that compute it; neuron j owns output j of each.
        fused: ``into`` stacks gate and up, so neuron j also owns output width + j.
    """

    down: str
    into: tuple[str, ...]
    fused: bool = False


# In the order they are tried, on each decoder layer and on its ``mlp``. Phi-3 and GLM-4
# stack the gate on the up projection; the last four have no gate.
FORMS = (
    MlpForm("down_proj", ("gate_proj", "up_proj")),
    MlpForm("down_proj", ("gate_up_proj",), fused=True),
    MlpForm("down_proj", ("up_proj",)),
    MlpForm("c_proj", ("c_fc",)),
    MlpForm("dense_4h_to_h", ("dense_h_to_4h",)),
    MlpForm("fc2", ("fc1",)),
)


@dataclass(frozen=True)
class WeightSlice:
    """Where neuron j stands in one parameter: index ``offset + j`` along ``dim``."""

    parameter: str
    dim: int
    offset: int = 0


@dataclass(frozen=True)
class LayerSite:
    """The neurons of one layer.

    Args:
        down: name of the module whose input is the neuron site, from the whole model.
        width: how many neurons.
        slices: every parameter that holds a part of a neuron.
    """

    down: str
    width: int
    slices: tuple[WeightSlice, ...]


@dataclass(frozen=True)
class Layout:
    """Every layer's neurons. ``blocks`` names the list of decoder layers."""

    architecture: str
    blocks: str
    sites: tuple[LayerSite, ...]

    @property
    def widths(self) -> list[int]:
        """Neurons in each layer."""
        return [site.width for site in self.sites]

    def down(self, model: nn.Module, layer: int) -> nn.Module:
        """The module whose input is the neuron site of ``layer``."""
        return model.get_submodule(self.sites[layer].down)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a projection is GPT-2's Conv1D: its weight is [in, out], nn.Linear's transpose."""
    return type(module).__name__ == "Conv1D"


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a projection."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    rows, columns = weight.shape
    return (rows, columns) if is_conv1d(module) else (columns, rows)


def _decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder layers: the longest ModuleList whose entries hold an MLP form."""
    found: list[tuple[str, nn.ModuleList]] = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        # A vision tower has MLPs too; the paper's neurons are the language model's.
        and not any(part in name for part in ("visual", "vision", "image", "audio"))
        and any(_find_form(block) for block in module)
    ]
    if not found:
        raise SafeNeuronError(
            f"{type(model).__name__} is not supported: none of its layers has an MLP that this "
            "version knows (gate/up/down, gate_up/down, c_fc/c_proj, h_to_4h/4h_to_h, fc1/fc2)"
        )
    return max(found, key=lambda pair: len(pair[1]))


def _find_form(block: nn.Module) -> tuple[str, MlpForm] | None:
    for holder in ("mlp", "feed_forward", ""):
        place = getattr(block, holder, None) if holder else block
        if not isinstance(place, nn.Module):
            continue
        for form in FORMS:
            parts = [getattr(place, name, None) for name in (form.down, *form.into)]
            if all(isinstance(part, nn.Module) and hasattr(part, "weight") for part in parts):
                return holder, form
    return None


def _site(block: nn.Module, prefix: str) -> LayerSite:
    found = _find_form(block)
    if found is None:
        raise SafeNeuronError(
            f"{prefix} has no dense MLP that this version knows; mixtures of experts are not "
            "supported yet"
        )
    holder, form = found
    place = block.get_submodule(holder) if holder else block
    prefix = f"{prefix}.{holder}" if holder else prefix
    down = place.get_submodule(form.down)
    width, _ = _sizes(down)
    slices = [WeightSlice(f"{prefix}.{form.down}.weight", 0 if is_conv1d(down) else 1)]
    for name in form.into:
        projection = place.get_submodule(name)
        _, outputs = _sizes(projection)
        expected = 2 * width if form.fused else width
        if outputs != expected:
            raise SafeNeuronError(
                f"{prefix}.{name} has {outputs} outputs where its down projection wants "
                f"{expected}; this architecture is not supported"
            )
        for offset in (0, width) if form.fused else (0,):
            dim = 1 if is_conv1d(projection) else 0
            slices.append(WeightSlice(f"{prefix}.{name}.weight", dim, offset))
            if getattr(projection, "bias", None) is not None:
                slices.append(WeightSlice(f"{prefix}.{name}.bias", 0, offset))
    return LayerSite(f"{prefix}.{form.down}", width, tuple(slices))


def layout_of(model: nn.Module) -> Layout:
    """Find the neurons of a model, and check that its weights have the shapes that asks.

    Raises:
        SafeNeuronError: the architecture is not one that this version knows.
    """
    name, blocks = _decoder_blocks(model)
    sites = tuple(_site(block, f"{name}.{index}") for index, block in enumerate(blocks))
    return Layout(type(model).__name__, name, sites)


def neuron_slices(layout: Layout) -> Iterator[tuple[int, WeightSlice]]:
    """Every parameter that holds parts of neurons, with its layer."""
    for layer, site in enumerate(layout.sites):
        for piece in site.slices:
            yield layer, piece
