"""Mask files for tests that need no model."""

from collections.abc import Mapping
from pathlib import Path

from toolkit.masks import MaskFile, MaskPrompts, MethodInfo, ModelInfo, PromptsInfo
from toolkit.neurons import NeuronSet


def make_mask(
    neurons: NeuronSet,
    parts: Mapping[str, NeuronSet] | None = None,
    model: ModelInfo | None = None,
) -> MaskFile:
    """A mask of these neurons, of a model that only has their shape unless one is given."""
    described = model or ModelInfo(
        source="tiny",
        fingerprint="a" * 64,
        architecture="LlamaForCausalLM",
        layers=len(neurons.widths),
        neurons_per_layer=list(neurons.widths),
    )
    side = PromptsInfo(name="prompts", sha256="b" * 64, count=20)
    prompts = MaskPrompts(harmful=side, harmless=side)
    return MaskFile.of(neurons, described, MethodInfo(name="es"), prompts, parts)


def mask_file(
    path: Path,
    neurons: NeuronSet,
    parts: Mapping[str, NeuronSet] | None = None,
    model: ModelInfo | None = None,
) -> str:
    """Write such a mask; gives the path as text."""
    make_mask(neurons, parts, model).write(path)
    return str(path)
