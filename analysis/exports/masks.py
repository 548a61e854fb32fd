"""A mask in the formats of other libraries."""

import inspect
import json
import pprint
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from analysis.exports.pages import mask_page
from analysis.exports.templates import nnsight, transformerlens
from analysis.tables import markdown_table, write_parquet
from toolkit.errors import SafeNeuronError
from toolkit.files import require_writable, write_atomically
from toolkit.masks import MaskFile
from toolkit.neurons import NeuronSet


def about(mask: MaskFile) -> dict[str, Any]:
    """Where a mask comes from: all of the mask file but its neurons."""
    told: dict[str, Any] = mask.model_dump(mode="json", by_alias=True, exclude={"neurons", "parts"})
    return told


def neurons_frame(mask: MaskFile) -> pd.DataFrame:
    """One row a neuron: ``layer``, ``neuron``, and which scores chose it, where that is known."""
    rows = list(mask.neuron_set())
    table = pd.DataFrame(rows, columns=["layer", "neuron"])
    for name in mask.parts:
        chosen = set(mask.part(name))
        table[name] = [row in chosen for row in rows]
    return table


def as_program(mask: MaskFile, template: Any) -> str:
    """A template's source with the mask's neurons filled in."""
    values = {
        "ABOUT": about(mask),
        "NEURONS": {layer: ids.tolist() for layer, ids in mask.neuron_set().layers().items()},
        "WIDTHS": mask.model.neurons_per_layer,
    }
    lines = []
    for line in inspect.getsource(template).splitlines():
        name, _, _ = line.partition(":")
        if name in values and line.startswith(f"{name}: "):
            head, _, _ = line.partition(" = ")
            text = pprint.pformat(values[name], width=100, compact=True, sort_dicts=False)
            lines.append(f"{head} = {text}")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def as_safetensors(mask: MaskFile) -> bytes:
    """Boolean tensors ``layers.{i}`` of ``[width]``; the header's metadata says of what.

    Layers without an MLP have a tensor of no elements.
    """
    tensors = {f"layers.{i}": np.asarray(m) for i, m in enumerate(mask.neuron_set().masks())}
    packed: bytes = save(tensors, metadata={"safeneuron": json.dumps(about(mask))})
    return packed


def read_safetensors(path: Path) -> NeuronSet:
    """The neurons of a mask that was exported so.

    Raises:
        SafeNeuronError: it is missing, damaged, or holds no such tensors.
    """
    try:
        with safe_open(path, framework="numpy") as stream:
            masks = [stream.get_tensor(f"layers.{i}") for i in range(len(stream.keys()))]
    except (OSError, SafetensorError) as error:
        raise SafeNeuronError(f"{path} is not a mask in safetensors: {error}") from error
    if not masks or any(mask.dtype != np.bool_ or mask.ndim != 1 for mask in masks):
        raise SafeNeuronError(f"{path} holds other tensors than boolean vectors of layers")
    return NeuronSet.from_masks(masks)


def _text(make: Callable[[MaskFile], str]) -> Callable[[MaskFile, Path], None]:
    return lambda mask, path: write_atomically(path, make(mask))


def _write_safetensors(mask: MaskFile, path: Path) -> None:
    scratch = path.with_name(f".{path.name}.partial")
    try:
        scratch.write_bytes(as_safetensors(mask))
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


FORMATS: dict[str, tuple[str, Callable[[MaskFile, Path], None]]] = {
    "json": (".json", _text(MaskFile.to_json)),
    "safetensors": (".safetensors", _write_safetensors),
    "transformerlens": (".py", _text(lambda mask: as_program(mask, transformerlens))),
    "nnsight": (".py", _text(lambda mask: as_program(mask, nnsight))),
    "csv": (".csv", _text(lambda mask: neurons_frame(mask).to_csv(index=False))),
    "parquet": (".parquet", lambda mask, path: write_parquet(neurons_frame(mask), path)),
    "markdown": (".md", _text(lambda mask: markdown_table(neurons_frame(mask)))),
    "html": (".html", _text(mask_page)),
}
"""Format -> how its files end, and what writes one."""


def export_mask(mask: MaskFile, form: str, path: Path) -> None:
    """Write a mask in one of :data:`FORMATS`, whole or not at all.

    Raises:
        SafeNeuronError: no such format, a name that ends otherwise, or no permission.
    """
    if form not in FORMATS:
        raise SafeNeuronError(f"no format {form!r}; choose one of {', '.join(FORMATS)}")
    ending, write = FORMATS[form]
    if path.suffix.lower() != ending:
        raise SafeNeuronError(f"{path}: name a file of the format {form} {ending}")
    require_writable(path, "file")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(mask, path)
