"""What the reference said of a batch, kept on disk: it is asked once.

The reference is the untouched start model, so a run that is started again needs none of its
passes anew, nor do other recipes that train the same model on the same pairs.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.files import canonical_json, sha256_text, write_atomically
from toolkit.models.load import LoadedModel
from toolkit.neurons import NeuronSet

Sides = tuple[Tensor, Tensor]
"""Log-probabilities of the chosen and of the rejected answers, ``[pairs]`` each, in nats."""


class ReferenceMemory:
    """One reference's log-probabilities, a file a batch.

    Args:
        folder: where the files are; several references and processes may share it.
        loaded: the start model, untouched.
        zeroed: neurons that the reference runs without, if any.
        dtype: of its arithmetic.
    """

    def __init__(
        self, folder: Path, loaded: LoadedModel, zeroed: NeuronSet | None, dtype: str
    ) -> None:
        without = None
        if zeroed is not None:
            without = {str(n): found.tolist() for n, found in zeroed.layers().items()}
        device = loaded.device.type
        told = [loaded.info.fingerprint, without, dtype, device, torch.__version__]
        self._folder = folder / sha256_text(canonical_json(told))[:16]

    def of(self, batch: Mapping[str, Any], compute: Callable[[], Sides]) -> Sides:
        """What the reference says of ``batch``: as it is remembered, else by asking it."""
        path = self._folder / f"{_name(batch)}.json"
        device = batch["input_ids"].device
        pairs = len(batch["input_ids"]) // 2
        try:
            kept = json.loads(path.read_text("utf-8"))
            dtype = getattr(torch, kept["dtype"])
            sides = [torch.tensor(kept[side], dtype=dtype) for side in ("chosen", "rejected")]
            if all(len(side) == pairs for side in sides):
                return sides[0].to(device), sides[1].to(device)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # not there, or broken: it is asked again
        chosen, rejected = compute()
        # Python's floats hold every float32 exactly, and JSON's text every float.
        told = {
            "chosen": chosen.tolist(),
            "rejected": rejected.tolist(),
            "dtype": str(chosen.dtype).removeprefix("torch."),
        }
        if bool(torch.isfinite(torch.cat([chosen, rejected])).all()):
            write_atomically(path, canonical_json(told))
        return chosen, rejected


def _name(batch: Mapping[str, Any]) -> str:
    """Names a batch by all that the model reads of it."""
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
