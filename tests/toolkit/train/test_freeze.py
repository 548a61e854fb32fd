"""Frozen means bit-identical, whatever the optimiser does; and everything else trains."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer

from tests.tiny import tiny_model
from toolkit.errors import SafeNeuronError
from toolkit.models.layout import layout_of, neuron_slices
from toolkit.neurons import NeuronSet
from toolkit.train.freeze import FrozenNeurons

CHOSEN = {0: [0, 7, 63], 2: [5]}
OPTIMISERS: dict[str, Callable[[Any], Optimizer]] = {
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.5),
    "sgd": lambda p: SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
}


def frozen_entries(model: Any, neurons: NeuronSet) -> list[torch.Tensor]:
    """Each frozen row or column, read one neuron at a time."""
    return [
        model.get_parameter(piece.parameter).select(piece.dim, piece.offset + j).detach().clone()
        for layer, piece in neuron_slices(layout_of(model))
        for j in neurons.layer(layer).tolist()
    ]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_bit_identical_with_decay_and_clipping(family: str, optimiser: str) -> None:
    model = tiny_model(family)
    layout = layout_of(model)
    neurons = NeuronSet(layout.widths, CHOSEN)
    before = frozen_entries(model, neurons)
    everything = {name: p.detach().clone() for name, p in model.named_parameters()}
    frozen = FrozenNeurons(model, layout, neurons)
    optimizer = OPTIMISERS[optimiser](model.parameters())
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        ids = torch.randint(3, 600, (2, 12), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        frozen.restore()
        optimizer.zero_grad()
    frozen.verify()
    after = frozen_entries(model, neurons)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert frozen.entries == sum(entry.numel() for entry in before)
    held: dict[str, int] = {}
    for layer, piece in neuron_slices(layout):
        for j in neurons.layer(layer).tolist():
            entry = model.get_parameter(piece.parameter).select(piece.dim, piece.offset + j)
            held[piece.parameter] = held.get(piece.parameter, 0) + entry.numel()
    for name, parameter in model.named_parameters():
        moved = int((parameter != everything[name]).sum())
        # Rows of unused tokens and positions move by decay alone, which keeps exact zeros.
        free = parameter.numel() - held.get(name, 0) - int((everything[name] == 0).sum())
        assert moved >= 0.99 * free, name


def test_without_the_restore_weight_decay_moves_them() -> None:
    model = tiny_model()
    layout = layout_of(model)
    frozen = FrozenNeurons(model, layout, NeuronSet(layout.widths, CHOSEN))
    optimizer = OPTIMISERS["adamw"](model.parameters())
    ids = torch.arange(3, 15)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with pytest.raises(SafeNeuronError, match="moved"):
        frozen.verify()


def test_the_gradient_norm_is_that_of_what_trains() -> None:
    ids = torch.arange(3, 15)[None]
    plain, masked = tiny_model(), tiny_model()
    layout = layout_of(plain)
    neurons = NeuronSet(layout.widths, CHOSEN)
    frozen = FrozenNeurons(masked, layout, neurons)
    for model in (plain, masked):
        model(input_ids=ids, labels=ids).loss.backward()
    for layer, piece in neuron_slices(layout):
        gradient = plain.get_parameter(piece.parameter).grad
        assert gradient is not None
        for j in neurons.layer(layer).tolist():
            gradient.select(piece.dim, piece.offset + j).zero_()
    for (name, a), (_, b) in zip(plain.named_parameters(), masked.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    frozen.release()


def test_another_shape_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(SafeNeuronError, match="shape"):
        FrozenNeurons(model, layout_of(model), NeuronSet([4, 4], {0: [1]}))


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_an_adapter_s_delta_is_masked(family: str) -> None:
    """Fused projections and transposed ones too: merged, the frozen bits are the start's."""
    from peft import LoraConfig, get_peft_model

    plain = tiny_model(family)
    layout = layout_of(plain)
    neurons = NeuronSet(layout.widths, CHOSEN)
    before = frozen_entries(plain, neurons)
    started = {name: p.detach().clone() for name, p in plain.named_parameters()}
    wrapped: Any = get_peft_model(
        plain, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    frozen = FrozenNeurons(wrapped, layout, neurons)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = OPTIMISERS["adamw"](trained)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        ids = torch.randint(3, 600, (2, 12), generator=generator)
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        frozen.restore()
        optimizer.zero_grad()
    frozen.verify()
    # Four neurons; a row of B each for what is written, a column of A for what is read.
    pieces = {"llama": 3, "phi3": 3, "gpt2": 2}[family]
    assert frozen.entries == 4 * 4 * pieces
    merged = wrapped.merge_and_unload()
    frozen.verify_merged(merged)
    after = frozen_entries(merged, neurons)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))
    for layer, piece in neuron_slices(layout):
        if piece.parameter.endswith("weight"):
            now = merged.get_parameter(piece.parameter).select(piece.dim, piece.offset + 9)
            start = started[piece.parameter].select(piece.dim, piece.offset + 9)
            assert not torch.equal(now, start), (layer, piece)


def test_an_adapter_that_moved_a_frozen_neuron_is_found_out() -> None:
    from peft import LoraConfig, get_peft_model

    plain = tiny_model()
    layout = layout_of(plain)
    wrapped: Any = get_peft_model(
        plain, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    frozen = FrozenNeurons(wrapped, layout, NeuronSet(layout.widths, CHOSEN))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    with pytest.raises(SafeNeuronError, match="moved"):
        frozen.verify()
    with pytest.raises(SafeNeuronError, match="moved"):
        frozen.verify_merged(wrapped.merge_and_unload())
