"""Neurons planted in a model are found again, end to end, through every backend.

A direction u of the residual stream is made to mean "this is harmful" and a direction w
"this is harmless": one token each carries them, the first layer's attention copies them
to every later token, and nothing else reads or writes them. Twenty neurons, spread over
the layers, fire along u. They are the only ones that can tell the two prompt sets apart:
w makes up for what u adds to the norm.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.scores.table import score_table
from analysis.select import METHODS, Selection, select
from tests.tiny import tiny_model, tiny_tokenizer
from toolkit.capture.backends import BACKENDS, make_backend
from toolkit.capture.base import POSITIONS, Position, capture_moments
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet

PLANTED = NeuronSet(
    [64, 64, 64],
    {0: [3, 10, 11, 30, 41, 50, 63], 1: [0, 1, 17, 33, 40, 62], 2: [5, 6, 7, 20, 21, 44, 59]},
)
HARMFUL_WORD, HARMLESS_WORD = " poison", " paint"
FILLERS = [" steal", " break", " car", " bank", " boat", " chair", " garden", " bike", " phone"]


def prompts(word: str, seed: int) -> list[str]:
    """Random words with ``word`` among them: alike in all but that word."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(40):
        words = list(generator.choice(FILLERS, size=generator.integers(6, 10)))
        words.insert(int(generator.integers(1, 4)), word)
        texts.append("Explain" + "".join(words))
    return texts


def off(directions: Tensor, weight: Tensor, dim: int) -> None:
    """Take orthonormal directions ``[2, hidden]`` out of a weight's dimension, in place."""
    moved = weight.movedim(dim, -1)
    moved -= moved @ directions.T @ directions


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    model = tiny_model("llama")
    tokenizer = tiny_tokenizer()
    (harmful,) = tokenizer(HARMFUL_WORD)["input_ids"]
    (harmless,) = tokenizer(HARMLESS_WORD)["input_ids"]
    generator = torch.Generator().manual_seed(7)
    directions = torch.linalg.qr(torch.randn(32, 2, generator=generator)).Q.T
    u, w = directions
    with torch.no_grad():
        embedding = model.get_parameter("model.embed_tokens.weight")
        off(directions, embedding, 1)
        plain = embedding[harmless].clone()
        embedding[harmful], embedding[harmless] = plain + 0.3 * u, plain + 0.3 * w
        for layer in range(3):
            block = f"model.layers.{layer}"
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                off(directions, model.get_parameter(f"{block}.{name}.weight"), 1)
            off(directions, model.get_parameter(f"{block}.self_attn.o_proj.weight"), 0)
            off(directions, model.get_parameter(f"{block}.mlp.down_proj.weight"), 0)
            off(directions, model.get_parameter(f"{block}.mlp.down_proj.bias"), 0)
            chosen = PLANTED.layer(layer).tolist()
            # They tell nobody, or the neurons of later layers would know as well.
            model.get_parameter(f"{block}.mlp.down_proj.weight")[:, chosen] = 0.0
            for name in ("gate_proj", "up_proj"):
                weight = model.get_parameter(f"{block}.mlp.{name}.weight")
                off(directions, weight, 1)
                weight[chosen] = 8 * u
                model.get_parameter(f"{block}.mlp.{name}.bias")[chosen] = 0.0
        # Head 0 of the first layer attends to all tokens alike and carries both along.
        attention = "model.layers.0.self_attn"
        model.get_parameter(f"{attention}.q_proj.weight")[:8] = 0.0
        model.get_parameter(f"{attention}.v_proj.weight")[:2] = directions
        model.get_parameter(f"{attention}.o_proj.weight")[:, :2] = directions.T
        # Head 1 shares its values (grouped queries) and must not pass them on.
        model.get_parameter(f"{attention}.o_proj.weight")[:, 8:10] = 0.0
    folder = Path(tmp_path_factory.mktemp("planted"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), device="cpu")


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_planted_neurons_are_found(
    planted: LoadedModel, backend: str, position: Position
) -> None:
    runner = make_backend(backend, planted)
    harmful = capture_moments(planted, runner, prompts(HARMFUL_WORD, 0), position)
    harmless = capture_moments(planted, runner, prompts(HARMLESS_WORD, 1), position)
    table = score_table(harmful, harmless)
    for method in METHODS:
        found = select(table, PLANTED.widths, Selection(method, top=20 / 192))
        assert found == PLANTED, method
        # The paper's thresholds, 2 and 2, find the same.
        assert select(table, PLANTED.widths, Selection(method)) == PLANTED, method
    mask = np.concatenate(PLANTED.masks())
    scores = table["es"].to_numpy()
    assert scores[mask].min() > 3 * scores[~mask].max()


def test_nothing_is_found_where_nothing_was_planted(planted: LoadedModel) -> None:
    runner = make_backend("torch", planted)
    sides = [capture_moments(planted, runner, prompts(HARMLESS_WORD, s), "mean") for s in (0, 1)]
    table = score_table(*sides)
    assert len(select(table, PLANTED.widths, Selection("es"))) == 0
