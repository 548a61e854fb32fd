"""A model in memory, with its tokenizer, its layout and what it is."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging

from toolkit.errors import SafeNeuronError
from toolkit.masks import ModelInfo
from toolkit.models.layout import Layout, layout_of
from toolkit.models.sources import ModelFolder, resolve

# Progress is told by whoever runs the model, in prompts and steps; a bar for each load
# would stand between the lines of a command.
logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass
class LoadedModel:
    """A model ready to run.

    Args:
        folder: where it came from.
        model: the ``transformers`` model, in evaluation mode.
        tokenizer: its fast tokenizer, with a padding token.
        layout: where its neurons are.
    """

    folder: ModelFolder
    model: Any
    tokenizer: Any
    layout: Layout

    @property
    def info(self) -> ModelInfo:
        """What results record about the model."""
        return ModelInfo(
            source=self.folder.source,
            fingerprint=self.folder.fingerprint,
            architecture=self.layout.architecture,
            layers=len(self.layout.sites),
            neurons_per_layer=self.layout.widths,
        )

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        device = self.model.device
        assert isinstance(device, torch.device)
        return device

    @property
    def body(self) -> Any:
        """The transformer without the unembedding, for passes that need no logits."""
        return self.model.base_model


def pick_device() -> str:
    """The accelerator when there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def context_length(config: Any) -> int | None:
    """The most tokens that a model's configuration has positions for; None if it says none."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def load_model(
    source: str | ModelFolder, dtype: torch.dtype = torch.float32, device: str | None = None
) -> LoadedModel:
    """Load a model from any source.

    Args:
        source: a model source, or one already resolved.
        dtype: of the weights; captures are exact in float32.
        device: ``cpu``, ``cuda``, ...; by default the accelerator when there is one.

    Raises:
        SafeNeuronError: no such model, or an architecture that is not supported.
    """
    loaded = load_answering(source, dtype, device)
    return replace(loaded, layout=layout_of(loaded.model))


def load_answering(
    source: str | ModelFolder, dtype: torch.dtype = torch.float32, device: str | None = None
) -> LoadedModel:
    """Load a model that is only to answer: of any architecture, its layout has no neurons.

    Args:
        source: a model source, or one already resolved.
        dtype: of the weights.
        device: by default the accelerator when there is one.

    Raises:
        SafeNeuronError: no such model, or no causal language model with a fast tokenizer.
    """
    folder = resolve(source) if isinstance(source, str) else source
    model: Any = load_weights(folder.path, dtype)
    model.to(device or pick_device()).eval()
    nowhere = Layout(type(model).__name__, "", ())
    return LoadedModel(folder, model, load_tokenizer(folder.path), nowhere)


def load_weights(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a fresh model from a folder; each capture backend needs one of its own."""
    name = json.loads((path / "config.json").read_text("utf-8")).get("model_type", "unknown")
    try:
        config = AutoConfig.from_pretrained(path)
        kind: Any = AutoModelForCausalLM
        if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            from transformers import AutoModelForImageTextToText

            kind = AutoModelForImageTextToText
        model = kind.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SafeNeuronError(f"cannot load {path} (model type {name}): {reason}") from error
    assert isinstance(model, PreTrainedModel)
    return model


def load_tokenizer(path: Path) -> Any:
    """Load a folder's tokenizer.

    Raises:
        SafeNeuronError: there is none, or it has no character offsets.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SafeNeuronError(f"{path} has no usable tokenizer: {reason}") from error
    if not tokenizer.is_fast:
        raise SafeNeuronError(
            f"{path} has a slow tokenizer; save it as a fast one (tokenizer.json)"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise SafeNeuronError(f"{path}: the tokenizer has neither a pad nor an eos token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
