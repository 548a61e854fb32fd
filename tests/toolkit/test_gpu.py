"""What a CUDA device must do as the CPU does; skipped where there is none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import HARMFUL
from tests.toolkit.train.cells import CELLS, CHOSEN, PAIRS, Cell, compare, run_cell
from tests.toolkit.train.test_matrix import check
from toolkit.capture.backends import make_backend
from toolkit.capture.base import POSITIONS, Position, capture_moments
from toolkit.generate import generate
from toolkit.intervene import Intervention, intervene
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet
from toolkit.train.dpo import train
from toolkit.train.recipes import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture
def both(tiny_llama: Path) -> tuple[LoadedModel, LoadedModel]:
    return load_model(str(tiny_llama), device="cpu"), load_model(str(tiny_llama))


@pytest.mark.parametrize("position", POSITIONS)
def test_moments(both: tuple[LoadedModel, LoadedModel], position: Position) -> None:
    cpu, cuda = (
        capture_moments(loaded, make_backend("torch", loaded), HARMFUL, position, batch_size=7)
        for loaded in both
    )
    for one, other in zip(cpu, cuda, strict=True):
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(one.m2, other.m2, rtol=1e-3, atol=1e-5)


def test_answers_whole_and_without_neurons(both: tuple[LoadedModel, LoadedModel]) -> None:
    told: list[list[list[str]]] = []
    for loaded in both:
        neurons = NeuronSet(loaded.layout.widths, {0: list(range(32)), 2: list(range(16))})
        whole = generate(loaded, HARMFUL[:6], 8)
        with intervene(loaded.model, loaded.layout, Intervention(neurons)):
            told.append([whole, generate(loaded, HARMFUL[:6], 8)])
    assert told[0] == told[1]
    assert told[0][0] != told[0][1]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_frozen_entries_are_bit_identical(cell: Cell, tiny_llama: Path) -> None:
    check(run_cell(cell, str(tiny_llama), "cuda"), cell)


@pytest.fixture
def memory() -> Iterator[Any]:
    """Sets how much of the device this process may take; all of it again afterwards."""
    total = torch.cuda.get_device_properties(0).total_memory

    def limit(most: int) -> None:
        torch.cuda.set_per_process_memory_fraction(most / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_out_of_memory_halves_the_parts_and_keeps_the_batch(
    tiny_llama: Path, tmp_path: Path, memory: Any
) -> None:
    settings = Settings(
        recipe="safeneuron",
        zero=False,
        steps=2,
        batch_size=512,
        learning_rate=0.05,
        weight_decay=0.1,
        beta=0.1,
        sft_weight=0.2,
        max_length=128,
        save_every=1,
        seed=0,
        dtype="float32",
        # Adam would blow up what rounding does to gradients near zero.
        optimiser="sgd",
    )
    pairs = PAIRS * 60

    def run(name: str) -> tuple[LoadedModel, list[dict[str, Any]]]:
        loaded = load_model(str(tiny_llama))
        heard: list[dict[str, Any]] = []
        neurons = NeuronSet(loaded.layout.widths, CHOSEN)
        outcome = train(
            loaded, pairs, neurons, settings, tmp_path / name, heard.append, lambda: False
        )
        assert outcome.finished
        assert outcome.steps == 2
        return loaded, heard

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_reserved()
    free, _ = run("free")
    needed = torch.cuda.max_memory_reserved() - held
    expected = {name: p.detach().cpu() for name, p in free.model.named_parameters()}
    del free
    torch.cuda.empty_cache()
    memory(torch.cuda.memory_reserved() + needed * 6 // 10)
    tight, heard = run("tight")
    parts = [event["micro_batch"] for event in heard if event["kind"] == "memory"]
    assert parts
    assert parts[0] == 256
    start = load_model(str(tiny_llama), device="cpu")
    before = {name: p.detach() for name, p in start.model.named_parameters()}
    after = {name: p.detach().cpu() for name, p in tight.model.named_parameters()}
    changed, _ = compare(start.layout, before, after, CHOSEN)
    assert changed == 0
    # The batch is the same one, added up in another order.
    for name, tensor in expected.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=1e-5)
