"""The line between refusing and answering: its two regressions, and an adapter that it moves."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import HARMFUL, HARMLESS
from toolkit.errors import SafeNeuronError
from toolkit.examples import Example
from toolkit.generate import next_token_logits, prompt_ids
from toolkit.models.convert import merge_into
from toolkit.models.load import LoadedModel, load_model
from toolkit.train.refusal_line import (
    LineSettings,
    add_rank,
    beginning_direction,
    draw_line,
    quietest_shift,
    refusal_margin,
    strengthen,
)
from toolkit.train.safety_lora import SafetyLoraSettings, train_safety_lora

REFUSAL = "no I refuse"


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_lead_is_over_the_most_likely_other_word() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.5], [4.0, 0.0, 1.0]])
    lead, others = refusal_margin(logits, 0)
    assert lead.tolist() == [-2.0, 3.0]
    half = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(others[0], [0, half, 1 - half], rtol=1e-6)
    assert logits[0, 0] == 1.0  # left as it was


def test_where_answers_begin_is_a_ridge_regression() -> None:
    begins, along = random(20, 8), random(50, 8) + 0.3
    weight, ridge = 9.0, 0.01
    found = beginning_direction(begins, along, weight, ridge)
    # The same as one least-squares problem with the ridge as rows of its own.
    rows = np.concatenate([3 * begins.double().numpy(), along.double().numpy()])
    mean = (rows**2).sum(axis=0).mean()
    stacked = np.concatenate([rows, np.sqrt(ridge * mean) * np.eye(8)])
    target = np.concatenate([np.full(20, 3.0), np.zeros(50 + 8)])
    np.testing.assert_allclose(found, np.linalg.lstsq(stacked, target)[0], rtol=1e-3, atol=1e-5)


def test_the_shift_takes_what_it_should_and_disturbs_least() -> None:
    head, likely = random(40, 6).double(), random(40).exp().double()
    likely[3] = 0
    likely /= likely.sum()
    found = quietest_shift(head, likely, 3, nats=1.5, ridge=0.0)

    def taken(vector: Tensor) -> float:
        changed = head @ vector
        return float(likely @ changed - changed[3])

    def disturbed(vector: Tensor) -> float:
        changed = head @ vector
        return float(likely @ (changed - likely @ changed) ** 2)

    assert taken(found) == pytest.approx(1.5)
    for other in random(30, 6).double():
        # Another vector that takes as much.
        other = found + 0.1 * other
        other = other * 1.5 / taken(other)
        assert disturbed(other) > disturbed(found)


@pytest.fixture(scope="module")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that refuses, of rank 4."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    settings = SafetyLoraSettings(
        rank=4, alpha=8, steps=30, refusals=4, answers=4, rows=4, learning_rate=1e-2
    )
    refusals = [Example(text, REFUSAL) for text in HARMFUL]
    answers = [Example(text, "paint the boat", ends=False) for text in HARMLESS]
    train_safety_lora(load_model(str(tiny_llama)), refusals, answers, settings, folder)
    return folder


def merged(base: Path, adapter: Path) -> LoadedModel:
    loaded = load_model(str(base))
    loaded.model = merge_into(loaded.model, adapter)
    loaded.model.eval()
    return loaded


def test_what_is_added_is_what_was_asked_for(
    tiny_llama: Path, trained: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained, adapter)
    loaded = load_model(str(tiny_llama))
    base, last = loaded.model.state_dict(), loaded.layout.sites[-1].down
    before = merged(tiny_llama, adapter).model.state_dict()
    strengthen(adapter, 1.5)
    width, neurons = base[f"{last}.weight"].shape
    column, row = random(width), random(neurons)
    add_rank(adapter, last, column, row)
    after = merged(tiny_llama, adapter).model.state_dict()
    for name, value in after.items():
        wanted = base[name] + 1.5 * (before[name] - base[name])
        if name == f"{last}.weight":
            wanted = wanted + torch.outer(column, row)
        # Within what half precision keeps of the factors.
        apart = (value - wanted).norm() / (wanted - base[name]).norm().clamp(min=1e-9)
        assert apart < 0.01, name


def test_a_module_that_is_not_adapted_is_refused(trained: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained, adapter)
    with pytest.raises(SafeNeuronError, match="does not touch lm_head"):
        add_rank(adapter, "lm_head", random(3), random(3))


def test_the_line_is_drawn_where_few_harmless_prompts_are_beyond(
    tiny_llama: Path, trained: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained, adapter)
    strengthen(adapter, 2.0)
    loaded = merged(tiny_llama, adapter)
    refusal = loaded.tokenizer(REFUSAL, add_special_tokens=False)["input_ids"][0]

    def leads(model: LoadedModel, texts: list[str]) -> Tensor:
        logits = next_token_logits(model, [prompt_ids(model, text) for text in texts])
        return refusal_margin(logits, refusal)[0]

    # Some of what it refuses stands for harmless prompts beyond the line.
    sides = {"harmful": HARMFUL[:10], "harmless": HARMLESS + HARMFUL[10:]}
    before = {side: leads(loaded, texts) for side, texts in sides.items()}
    refusals = [Example(text, REFUSAL) for text in sides["harmful"]]
    answers = [Example(text, "paint the boat", ends=False) for text in sides["harmless"]]
    nats = draw_line(loaded, refusals, answers, refusal, LineSettings(refused=0.1), adapter)
    assert nats == pytest.approx(float(before["harmless"].quantile(0.9)), abs=1e-3)
    moved = merged(tiny_llama, adapter)
    for side, texts in sides.items():
        taken = before[side] - leads(moved, texts)
        # A model this small has few neurons to tell the places apart by.
        assert taken.min() > 0
        assert float(taken.mean()) == pytest.approx(nats, rel=0.35)
    assert draw_line(moved, refusals, answers, refusal, LineSettings(refused=0.5), adapter) == 0.0
