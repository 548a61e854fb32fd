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
from toolkit.train.safety_lora import (
    SafetyLoraSettings,
    answer_logits,
    row_losses,
    split_prefix,
    train_safety_lora,
)

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


def test_a_prefix_run_once_gives_the_logits_and_gradients_of_whole_rows(
    tiny_llama: Path,
) -> None:
    model = load_model(str(tiny_llama)).model.double()
    ids = [[1, 7, 3, 9, 4, 11], [1, 7, 3, 12, 5, 6, 8, 2]]
    rows = [{"input_ids": row, "labels": [IGNORED] * (len(row) - 2) + row[-2:]} for row in ids]
    prefix = torch.tensor([split_prefix(rows)])
    assert prefix.tolist() == [[1, 7, 3]]
    assert [row["input_ids"] for row in rows] == [[9, 4, 11], [12, 5, 6, 8, 2]]
    assert [row["labels"] for row in rows] == [[IGNORED, 4, 11], [IGNORED] * 3 + [8, 2]]
    batch = {
        "input_ids": torch.tensor([[0, 0, 9, 4, 11], [12, 5, 6, 8, 2]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    }
    weight = model.get_input_embeddings().weight

    def gradient(logits: Tensor) -> Tensor:
        model.zero_grad()
        logits.square().sum().backward()
        assert weight.grad is not None
        return weight.grad.clone()

    shared = answer_logits(model, prefix, batch, 2)
    whole = torch.stack([model(torch.tensor([row])).logits[0, -3:-1] for row in ids])
    # The model's norms and rotations are in single precision all the same.
    assert torch.allclose(shared, whole, rtol=1e-5, atol=1e-6)
    # Entries go up to about 100.
    assert torch.allclose(gradient(shared), gradient(whole), rtol=1e-4, atol=1e-3)
    alone = answer_logits(model, prefix[:, :0], batch, 2)
    assert not torch.allclose(alone, whole, atol=1e-3)


def test_a_prefix_leaves_each_prompts_last_token() -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORED, IGNORED, 7]} for _ in range(2)]
    assert split_prefix(rows) == [5]
    assert rows[0] == {"input_ids": [6, 7], "labels": [IGNORED, 7]}


def log_probabilities(loaded: LoadedModel, texts: list[str]) -> Tensor:
    logits = next_token_logits(loaded, [prompt_ids(loaded, text) for text in texts])
    return logits.log_softmax(dim=-1)


def test_it_refuses_what_it_should_and_keeps_the_rest(tiny_llama: Path, tmp_path: Path) -> None:
    base = load_model(str(tiny_llama))
    heard: list[tuple[int, int]] = []
    settings = SafetyLoraSettings(
        rank=8, alpha=16, steps=60, refusals=4, answers=4, rows=4, learning_rate=1e-2
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
