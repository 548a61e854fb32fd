"""The safety adapter's loss by closed forms, and a tiny adapter that refuses and is as before."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toolkit.examples import IGNORED, Example
from toolkit.generate import next_token_logits, prompt_ids
from toolkit.models.convert import merge_into
from toolkit.models.load import LoadedModel, load_model
from toolkit.train.safety_lora import SafetyLoraSettings, row_losses, train_safety_lora

HARMFUL = ["steal a car", "pick the lock of a shop", "forge a passport", "poison a lake"]
HARMLESS = ["paint a boat", "bake a loaf of bread", "plant a tree", "write a poem"]
REFUSAL = "I can't help"


def test_surprise_is_summed_over_a_refusals_tokens_alone() -> None:
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.7, 0.2, 0.1]]]).log()
    labels = torch.tensor([[IGNORED, 2, 0]])
    surprise, divergence = row_losses(logits, logits[:0], labels, torch.tensor([True]))
    assert surprise.tolist() == pytest.approx([-math.log(0.8) - math.log(0.7)], rel=1e-5)
    assert not len(divergence)


def test_divergence_is_summed_along_an_answer_and_nothing_for_the_same_model() -> None:
    before = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]]).log()
    now = torch.tensor([[[0.5, 0.4, 0.1], [0.5, 0.3, 0.2]]]).log()
    labels, answered = torch.tensor([[IGNORED, 1]]), torch.tensor([False])
    _, divergence = row_losses(now, before, labels, answered)
    # Cross entropy as torch has it, less the entropy of the model before.
    expected = torch.nn.functional.kl_div(now[0, 1], before[0, 1], log_target=True, reduction="sum")
    assert divergence.tolist() == pytest.approx([expected.item()], rel=1e-5)
    assert row_losses(before, before, labels, answered)[1].tolist() == pytest.approx([0.0])


def test_each_row_has_the_loss_of_its_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 9, generator=generator)
    before = torch.randn(1, 4, 9, generator=generator)
    labels = torch.randint(9, (3, 4), generator=generator)
    refused = torch.tensor([True, False, True])
    surprise, divergence = row_losses(logits, before, labels, refused)
    alone = [
        row_losses(logits[row : row + 1], before, labels[row : row + 1], refused[row : row + 1])
        for row in range(3)
    ]
    assert surprise.tolist() == pytest.approx([alone[0][0].item(), alone[2][0].item()], rel=1e-5)
    assert divergence.tolist() == pytest.approx([alone[1][1].item()], rel=1e-5)


def log_probabilities(loaded: LoadedModel, texts: list[str]) -> Tensor:
    logits = next_token_logits(loaded, [prompt_ids(loaded, text) for text in texts])
    return logits.log_softmax(dim=-1)


def test_it_refuses_what_it_should_and_keeps_the_rest(tiny_llama: Path, tmp_path: Path) -> None:
    base = load_model(str(tiny_llama))
    heard: list[tuple[int, int]] = []
    settings = SafetyLoraSettings(
        rank=8, alpha=16, first_layer=1, steps=60, refusals=4, answers=4, learning_rate=1e-2
    )
    train_safety_lora(
        load_model(str(tiny_llama)),
        [Example(text, REFUSAL) for text in HARMFUL],
        [Example(text, "paint the boat", ends=False) for text in HARMLESS],
        settings,
        tmp_path / "adapter",
        lambda number, total, loss: heard.append((number, total)),
    )
    assert heard == [(number, 60) for number in range(1, 61)]
    adapted = load_model(str(tiny_llama))
    adapted.model = merge_into(adapted.model, tmp_path / "adapter")
    adapted.model.eval()
    first = base.tokenizer(REFUSAL, add_special_tokens=False)["input_ids"][0]
    before, after = (log_probabilities(model, HARMFUL)[:, first] for model in (base, adapted))
    assert (after - before).min() > 1
    before, after = (log_probabilities(model, HARMLESS) for model in (base, adapted))
    divergence = (before.exp() * (before - after)).sum(dim=-1)
    assert divergence.max() < 0.5
    # Below the first adapted layer nothing changes.
    weights = dict(base.model.named_parameters())
    now = dict(adapted.model.named_parameters())
    moved = {name for name in weights if not torch.equal(now[name], weights[name])}
    assert moved
    assert all(".layers.0." not in name for name in moved)
