"""Interventions, held against an MLP whose forward is written out by hand."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import FAMILIES, tiny_model
from toolkit.errors import SafeNeuronError
from toolkit.intervene import Intervention, intervene, write_into_weights
from toolkit.models.layout import layout_of
from toolkit.neurons import NeuronSet

IDS = torch.tensor([[5, 9, 300, 41, 77, 8], [2, 500, 17, 17, 90, 3]])
WIDTHS = [64, 64, 64]
CHOSEN = NeuronSet(WIDTHS, {0: [0, 5, 63], 2: range(10, 40)})
ACTIONS = [
    Intervention(CHOSEN),
    Intervention(CHOSEN, "hold", 1.5),
    Intervention(CHOSEN, "hold", 0.0),
    Intervention(CHOSEN, "scale", -2.0),
    Intervention(CHOSEN, "scale", 1.0),
]


def by_hand(intervention: Intervention) -> nn.Module:
    """A Llama whose MLPs' forward does the intervention itself, neuron by neuron."""
    model = tiny_model("llama")

    def override(mlp: nn.Module, layer: int) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            gate = x @ mlp.gate_proj.weight.T + mlp.gate_proj.bias
            up = x @ mlp.up_proj.weight.T + mlp.up_proj.bias
            neurons = gate * torch.sigmoid(gate) * up
            for index in intervention.neurons.layer(layer).tolist():
                if intervention.action == "zero":
                    neurons[..., index] = 0.0
                elif intervention.action == "hold":
                    neurons[..., index] = intervention.value
                else:
                    neurons[..., index] *= intervention.value
            return neurons @ mlp.down_proj.weight.T + mlp.down_proj.bias

        return forward

    for layer in range(len(WIDTHS)):
        mlp = model.get_submodule(f"model.layers.{layer}.mlp")
        mlp.forward = override(mlp, layer)
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("intervention", ACTIONS, ids=lambda i: f"{i.action} {i.value:g}")
def test_against_an_independent_forward(intervention: Intervention) -> None:
    model = tiny_model("llama")
    with intervene(model, layout_of(model), intervention):
        got = logits(model)
    torch.testing.assert_close(got, logits(by_hand(intervention)), rtol=1e-5, atol=1e-5)
    plain = logits(model)
    if intervention.action == "scale" and intervention.value == 1.0:
        torch.testing.assert_close(got, plain, rtol=0, atol=0)
    else:
        assert (got - plain).abs().max() > 1e-2


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0])
def test_written_into_weights_equals_hooked(family: str, factor: float) -> None:
    model = tiny_model(family)
    layout = layout_of(model)
    neurons = NeuronSet(layout.widths, {0: [1, 2], 1: range(0, 60, 3)})
    scale = Intervention(neurons, "scale", factor)
    with intervene(model, layout, scale):
        hooked = logits(model)
    before = copy.deepcopy(model.state_dict())
    write_into_weights(model, layout, scale)
    torch.testing.assert_close(logits(model), hooked, rtol=1e-5, atol=1e-5)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {f"{layout.sites[layer].down}.weight" for layer in (0, 1)}


def test_the_empty_set_changes_nothing() -> None:
    model = tiny_model("llama")
    plain = logits(model)
    nothing = Intervention(NeuronSet.empty(WIDTHS))
    with intervene(model, layout_of(model), nothing):
        assert torch.equal(logits(model), plain)
        assert hooks(model) == 0
    write_into_weights(model, layout_of(model), nothing)
    assert torch.equal(logits(model), plain)


def test_handles_are_removed_even_after_an_exception() -> None:
    model = tiny_model("llama")
    plain = logits(model)
    during = []

    def interrupted() -> None:
        with intervene(model, layout_of(model), ACTIONS[0]):
            during.append(hooks(model))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert during == [2]
    assert hooks(model) == 0
    assert torch.equal(logits(model), plain)


def test_interventions_nest_in_order() -> None:
    model = tiny_model("llama")
    layout = layout_of(model)
    with intervene(model, layout, Intervention(CHOSEN, "hold", 3.0)):
        held = logits(model)
        with intervene(model, layout, Intervention(CHOSEN)):
            inner = logits(model)
        assert torch.equal(logits(model), held)
    with intervene(model, layout, Intervention(CHOSEN)):
        assert torch.equal(logits(model), inner)


@pytest.mark.parametrize("intervention", ACTIONS[:2], ids=["zero", "hold"])
def test_no_gradient_at_removed_neurons(intervention: Intervention) -> None:
    model = tiny_model("llama")
    with intervene(model, layout_of(model), intervention):
        model(IDS).logits.square().mean().backward()
    rows = model.get_parameter("model.layers.2.mlp.up_proj.weight").grad
    assert rows is not None
    removed = torch.zeros(64, dtype=torch.bool)
    removed[10:40] = True
    assert (rows[removed] == 0).all()
    assert (rows[~removed] != 0).any(dim=1).all()


def test_refusals() -> None:
    model = tiny_model("llama")
    layout = layout_of(model)
    narrow = Intervention(NeuronSet([64, 64, 63], {0: [1]}))
    with (
        pytest.raises(SafeNeuronError, match="191 neurons, the model has 3 layers of 192"),
        intervene(model, layout, narrow),
    ):
        raise AssertionError("the block must not be entered")
    with pytest.raises(SafeNeuronError, match="191 neurons, the model has 3 layers of 192"):
        write_into_weights(model, layout, narrow)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SafeNeuronError, match="can't be written into the weights"):
        write_into_weights(model, layout, Intervention(CHOSEN, "hold", 1.0))
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
