"""A tiny model with neurons planted for six topics: 10 core, 20 shared, 30 of one topic.

As in ``test_planted``: a word of each topic carries a direction of the residual stream, the
first layer's attention copies it to every later token, and nothing but the planted neurons
reads it. Each of those fires along the directions of its topics.
"""

import json
from pathlib import Path

import numpy as np
import torch

from tests.tiny import tiny_model, tiny_tokenizer
from toolkit.neurons import NeuronSet

WIDTHS = [64, 64, 64]
WORDS = [" poison", " forge", " burn", " photograph", " repair", " clean"]
TOPICS = [word.strip() for word in WORDS]
HARMLESS_WORD = " paint"
FILLERS = [" steal", " break", " car", " bank", " boat", " chair", " garden", " bike", " phone"]


def planted_topics() -> dict[tuple[int, int], list[int]]:
    """Neuron -> its topics, by number: 10 of all six, 20 of two to five, 30 of one."""
    generator = np.random.default_rng(3)
    flat = generator.choice(192, 60, replace=False).tolist()
    member: list[list[int]] = [list(range(6))] * 10
    for n in range(20):
        member.append(sorted(generator.choice(6, 2 + n % 4, replace=False).tolist()))
    member += [[n % 6] for n in range(30)]
    return {(place // 64, place % 64): topics for place, topics in zip(flat, member, strict=True)}


def planted_set(topic: int) -> NeuronSet:
    """The neurons planted for one topic."""
    chosen = [neuron for neuron, topics in planted_topics().items() if topic in topics]
    return NeuronSet(WIDTHS, {n: [i for layer, i in chosen if layer == n] for n in range(3)})


def prompts(word: str, count: int, seed: int) -> list[str]:
    """Random words with ``word`` among them: alike in all but that word."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        words = list(generator.choice(FILLERS, size=generator.integers(6, 10)))
        words.insert(int(generator.integers(1, 4)), word)
        texts.append("Explain" + "".join(words))
    return texts


def save_planted(folder: Path) -> Path:
    """Save the planted model as a folder of a user's own."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokens = [tokenizer(word)["input_ids"] for word in (*WORDS, HARMLESS_WORD)]
    assert all(len(ids) == 1 for ids in tokens), tokens
    generator = torch.Generator().manual_seed(7)
    directions = torch.linalg.qr(torch.randn(32, 7, generator=generator)).Q.T

    def off(weight: torch.Tensor, dim: int) -> None:
        moved = weight.movedim(dim, -1)
        moved -= moved @ directions.T @ directions

    with torch.no_grad():
        embedding = model.get_parameter("model.embed_tokens.weight")
        off(embedding, 1)
        plain = embedding[tokens[-1][0]].clone()
        for (token,), direction in zip(tokens, directions, strict=True):
            embedding[token] = plain + 0.3 * direction
        for layer in range(3):
            block = f"model.layers.{layer}"
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                off(model.get_parameter(f"{block}.{name}.weight"), 1)
            off(model.get_parameter(f"{block}.self_attn.o_proj.weight"), 0)
            off(model.get_parameter(f"{block}.mlp.down_proj.weight"), 0)
            off(model.get_parameter(f"{block}.mlp.down_proj.bias"), 0)
            rows = {i: t for (where, i), t in planted_topics().items() if where == layer}
            # They tell nobody, or the neurons of later layers would know as well.
            model.get_parameter(f"{block}.mlp.down_proj.weight")[:, list(rows)] = 0.0
            for name in ("gate_proj", "up_proj"):
                weight = model.get_parameter(f"{block}.mlp.{name}.weight")
                off(weight, 1)
                for index, topics in rows.items():
                    weight[index] = 8 * directions[topics].sum(dim=0)
                model.get_parameter(f"{block}.mlp.{name}.bias")[list(rows)] = 0.0
        # Head 0 of the first layer attends to all tokens alike and carries all seven along.
        attention = "model.layers.0.self_attn"
        model.get_parameter(f"{attention}.q_proj.weight")[:8] = 0.0
        model.get_parameter(f"{attention}.v_proj.weight")[:7] = directions
        model.get_parameter(f"{attention}.o_proj.weight")[:, :7] = directions.T
        # Head 1 shares its values (grouped queries) and must not pass them on.
        model.get_parameter(f"{attention}.o_proj.weight")[:, 8:16] = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(folder: Path, each: int = 16) -> dict[str, Path]:
    """Files of prompts: harmful with topics, harmless, and others of both to attack with."""
    files = {name: folder / f"{name}.json" for name in ("topics", "harmless", "attacked", "asked")}
    rows = [
        {"prompt": text, "category": topic}
        for number, (word, topic) in enumerate(zip(WORDS, TOPICS, strict=True))
        for text in prompts(word, each, number)
    ]
    files["topics"].write_text(json.dumps(rows), "utf-8")
    harmless = prompts(HARMLESS_WORD, 6 * each, 100)
    files["harmless"].write_text(json.dumps(harmless), "utf-8")
    files["attacked"].write_text(json.dumps(prompts(WORDS[0], 6, 200)), "utf-8")
    files["asked"].write_text(json.dumps(prompts(HARMLESS_WORD, 4, 300)), "utf-8")
    return files
