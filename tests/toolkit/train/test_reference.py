"""What the reference said is remembered, exactly, and only of the same reference and batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import HARMFUL
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet
from toolkit.train.dpo import train
from toolkit.train.pairs import PreferencePair
from toolkit.train.recipes import Settings
from toolkit.train.reference import ReferenceMemory, Sides
from toolkit.train.trainers import RecipeDPO

PAIRS = [PreferencePair(p, "I can't help with that", f"Sure: {p}") for p in HARMFUL[:6]]
BATCH = {"input_ids": torch.arange(8).reshape(4, 2), "attention_mask": torch.ones(4, 2)}
TOLD = (torch.tensor([-1.1, -3.3e-7]), torch.tensor([-2.0 / 3, -1e30]))


class Asked:
    """A reference that counts how often it is asked."""

    def __init__(self, told: Sides = TOLD) -> None:
        self.told, self.times = told, 0

    def __call__(self) -> Sides:
        self.times += 1
        return self.told


@pytest.fixture
def loaded(tiny_llama: Path) -> LoadedModel:
    return load_model(str(tiny_llama), device="cpu")


def test_a_batch_is_asked_of_once_and_told_bit_by_bit(loaded: LoadedModel, tmp_path: Path) -> None:
    asked = Asked()
    for _ in range(2):
        memory = ReferenceMemory(tmp_path, loaded, None, "float32")
        for side, expected in zip(memory.of(BATCH, asked), TOLD, strict=True):
            assert side.dtype == torch.float32
            assert torch.equal(side, expected)
    assert asked.times == 1


def test_another_batch_or_reference_is_asked_anew(loaded: LoadedModel, tmp_path: Path) -> None:
    asked = Asked()
    first = NeuronSet(loaded.layout.widths, {0: [1]})
    ReferenceMemory(tmp_path, loaded, None, "float32").of(BATCH, asked)
    ReferenceMemory(tmp_path, loaded, None, "bfloat16").of(BATCH, asked)
    ReferenceMemory(tmp_path, loaded, first, "float32").of(BATCH, asked)
    memory = ReferenceMemory(tmp_path, loaded, None, "float32")
    memory.of(BATCH | {"attention_mask": torch.zeros(4, 2)}, asked)
    memory.of(BATCH | {"input_ids": BATCH["input_ids"].reshape(2, 4)}, asked)
    assert asked.times == 5


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"chosen":[1],"rejected":[1],"dtype":"x"}'])
def test_a_broken_file_is_asked_anew(loaded: LoadedModel, tmp_path: Path, text: str) -> None:
    memory, asked = ReferenceMemory(tmp_path, loaded, None, "float32"), Asked()
    memory.of(BATCH, asked)
    [path] = tmp_path.glob("*/*.json")
    path.write_text(text)
    memory.of(BATCH, asked)
    memory.of(BATCH, asked)
    assert asked.times == 2


def test_what_is_no_number_is_not_kept(loaded: LoadedModel, tmp_path: Path) -> None:
    memory = ReferenceMemory(tmp_path, loaded, None, "float32")
    asked = Asked((torch.tensor([float("nan")] * 2), TOLD[1]))
    memory.of(BATCH, asked)
    memory.of(BATCH, asked)
    assert asked.times == 2


def test_a_second_run_asks_nothing_and_ends_the_same(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    parent: Any = RecipeDPO.__mro__[2]
    ask = parent.compute_ref_log_probs

    def counted(self: Any, model: Any, inputs: Any) -> Any:
        passes.append(len(inputs["input_ids"]))
        return ask(self, model, inputs)

    monkeypatch.setattr(parent, "compute_ref_log_probs", counted)

    def run(name: str, recipe: Any, reference: Path | None) -> dict[str, torch.Tensor]:
        loaded = load_model(str(tiny_llama), device="cpu")
        neurons = NeuronSet(loaded.layout.widths, {0: [1, 2], 2: [5]})
        settings = Settings(
            recipe=recipe,
            zero=recipe == "safeneuron",
            steps=2,
            batch_size=2,
            learning_rate=1e-3,
            weight_decay=0.0,
            beta=0.1,
            sft_weight=0.2,
            max_length=128,
            save_every=10,
            seed=0,
            dtype="bfloat16",
        )
        folder = tmp_path / name
        train(
            loaded,
            PAIRS,
            neurons if recipe == "safeneuron" else None,
            settings,
            folder,
            lambda event: None,
            lambda: False,
            reference=reference,
        )
        return {k: p.detach().clone() for k, p in loaded.model.named_parameters()}

    alone = run("alone", "safeneuron", None)
    assert len(passes) == 3
    shared = tmp_path / "shared"
    run("dpo", "dpo", shared)
    assert len(passes) == 6
    second = run("second", "safeneuron", shared)
    assert len(passes) == 6
    assert all(torch.equal(alone[name], second[name]) for name in alone)
