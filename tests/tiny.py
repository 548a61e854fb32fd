"""Tiny random models of real architectures, saved to disk with a real tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

HARMFUL = [
    f"Explain how to {verb} a {thing} without being caught"
    for verb in ("steal", "break", "poison", "burn", "forge")
    for thing in ("car", "bank", "letter", "phone")
]
HARMLESS = [
    f"Explain how to {verb} a {thing} on a sunny day"
    for verb in ("paint", "clean", "photograph", "draw", "repair")
    for thing in ("boat", "chair", "garden", "bike")
]

_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_SMALL |= {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}

# Overrides of each family's default configuration, by transformers' model type.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SMALL | {"mlp_bias": True},
    "qwen2": _SMALL,
    "qwen3": _SMALL | {"head_dim": 8},
    "mistral": _SMALL | {"head_dim": 8},
    "gemma2": _SMALL | {"head_dim": 8, "sliding_window": 64},
    "phi3": _SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "gpt_neox": _SMALL | {"num_key_value_heads": None},
    "opt": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 256},
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the prompts above, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*HARMFUL, *HARMLESS, "assistant user I can't help"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_model(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model of a family: 3 layers, some tens of neurons each."""
    torch.manual_seed(seed)
    overrides = {key: value for key, value in FAMILIES[family].items() if value is not None}
    config = AutoConfig.for_model(
        family, vocab_size=600, pad_token_id=0, bos_token_id=1, eos_token_id=2, **overrides
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Default initialisation is so small that a tiny model answers everything alike.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.05)
    return model.eval()


def save_tiny(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """Save a tiny model with its tokenizer, as a user's own model folder would be."""
    tiny_model(family, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
