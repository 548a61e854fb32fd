"""Where the neurons are, in every family: the slices really are the neuron."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import FAMILIES, tiny_model
from toolkit.errors import SafeNeuronError
from toolkit.intervene import Intervention, intervene, write_into_weights
from toolkit.models.layout import Layout, layout_of, neuron_slices
from toolkit.neurons import NeuronSet

IDS = torch.tensor([[5, 9, 300, 41, 77, 8], [2, 500, 17, 17, 90, 3]])
families = pytest.mark.parametrize("family", sorted(FAMILIES))


def sites(model: nn.Module, layout: Layout) -> list[Tensor]:
    """The input of each down projection, ``[tokens, width]`` each."""
    seen: dict[int, Tensor] = {}
    handles = [
        layout.down(model, layer).register_forward_pre_hook(
            lambda _, inputs, layer=layer: seen.__setitem__(layer, inputs[0].flatten(0, -2))
        )
        for layer in range(len(layout.sites))
    ]
    with torch.inference_mode():
        model(IDS)
    for handle in handles:
        handle.remove()
    return [seen[layer] for layer in range(len(layout.sites))]


@families
def test_widths_are_the_configuration_s(family: str) -> None:
    model = tiny_model(family)
    layout = layout_of(model)
    assert layout.widths == [128 if family == "gpt2" else 64] * 3
    assert layout.architecture == type(model).__name__
    assert [site.shape[-1] for site in sites(model, layout)] == layout.widths


@families
def test_slices_are_within_their_parameters_and_cover_the_mlp(family: str) -> None:
    model = tiny_model(family)
    layout = layout_of(model)
    owned: dict[str, Tensor] = {}
    for layer, piece in neuron_slices(layout):
        parameter = model.get_parameter(piece.parameter)
        mask = owned.setdefault(piece.parameter, torch.zeros_like(parameter))
        mask.narrow(piece.dim, piece.offset, layout.sites[layer].width).add_(1)
    # Every element of a projection belongs to exactly one neuron; only the bias of the
    # down projection belongs to none.
    assert all((mask == 1).all() for mask in owned.values())
    mlp = [n for n, _ in model.named_parameters() if ".mlp." in n or ".fc1" in n or ".fc2" in n]
    left = {name for name in mlp if name not in owned}
    down_biases = {f"{site.down}.bias" for site in layout.sites}
    assert left <= down_biases
    assert owned.keys() <= set(mlp)


@families
def test_the_slices_into_a_neuron_move_that_neuron_alone(family: str) -> None:
    model = tiny_model(family)
    layout = layout_of(model)
    before = sites(model, layout)
    for layer, neuron in ((0, 0), (1, 37), (2, 63)):
        site = layout.sites[layer]
        into = [piece for piece in site.slices if not piece.parameter.startswith(site.down)]
        assert into
        for piece in into:
            parameter = model.get_parameter(piece.parameter)
            row = parameter.detach().select(piece.dim, piece.offset + neuron)
            kept = row.clone()
            row += 0.5
            after = sites(model, layout)
            row.copy_(kept)
            for earlier in range(layer):
                assert torch.equal(after[earlier], before[earlier])
            moved = (after[layer] != before[layer]).any(dim=0).nonzero().flatten().tolist()
            assert moved == [neuron], piece
    assert all(torch.equal(a, b) for a, b in zip(sites(model, layout), before, strict=True))


@families
def test_the_slice_out_of_a_neuron_carries_its_effect(family: str) -> None:
    """An MLP block's output falls by exactly activation x column when the column goes."""
    model = tiny_model(family)
    layout = layout_of(model)
    layer, neuron = 1, 20
    activations = sites(model, layout)[layer]
    down = layout.down(model, layer)
    piece = layout.sites[layer].slices[0]
    assert piece.parameter == f"{layout.sites[layer].down}.weight"
    weight = model.get_parameter(piece.parameter)
    column = weight.detach().select(piece.dim, neuron)
    with torch.inference_mode():
        whole = down(activations)
        effect = activations[:, neuron, None] * column[None]
        kept = column.clone()
        column.zero_()
        without = down(activations)
        column.copy_(kept)
    torch.testing.assert_close(whole - without, effect, rtol=1e-4, atol=1e-6)
    assert effect.abs().max() > 1e-3


@families
def test_zero_by_hook_equals_zero_in_the_weights_equals_zero_in_the_forward(family: str) -> None:
    model = tiny_model(family)
    layout = layout_of(model)
    generator = torch.Generator().manual_seed(1)
    neurons = NeuronSet(
        layout.widths,
        {
            i: torch.randperm(w, generator=generator)[:7].tolist()
            for i, w in enumerate(layout.widths)
        },
    )
    zero = Intervention(neurons)
    with torch.inference_mode():
        plain = model(IDS).logits
        with intervene(model, layout, zero):
            hooked = model(IDS).logits
        # Independently: every neuron's own rows into it are cleared, so that it is f(0) = 0.
        silenced = tiny_model(family)
        for layer, piece in neuron_slices(layout):
            if not piece.parameter.startswith(layout.sites[layer].down):
                rows = silenced.get_parameter(piece.parameter)
                rows.index_fill_(piece.dim, torch.tensor(neurons.layer(layer)) + piece.offset, 0.0)
        independent = silenced(IDS).logits
        write_into_weights(model, layout, zero)
        written = model(IDS).logits
    scale = plain.abs().max()
    assert (hooked - plain).abs().max() > 1e-3 * scale
    assert (hooked - written).abs().max() <= 1e-5 * scale
    assert (hooked - independent).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("kind", ["mamba", "mixtral", "qwen3_moe", "bert"])
def test_other_architectures_are_refused_in_one_line(kind: str) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"intermediate_size": 64, "vocab_size": 100}
    if "mixtral" in kind or "moe" in kind:
        small |= {"num_key_value_heads": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small))
    with pytest.raises(SafeNeuronError, match="not supported") as caught:
        layout_of(model)
    assert "\n" not in str(caught.value)


def test_a_module_without_layers_is_refused() -> None:
    with pytest.raises(SafeNeuronError, match="Linear is not supported"):
        layout_of(nn.Linear(2, 2))


def test_a_projection_of_another_size_is_refused() -> None:
    model = tiny_model("llama")
    model.get_submodule("model.layers.1.mlp").gate_proj = nn.Linear(32, 60)
    with pytest.raises(SafeNeuronError, match=r"layers.1.mlp.gate_proj has 60 outputs.* 64"):
        layout_of(model)


def test_layers_of_different_widths(tmp_path: Path) -> None:
    model = tiny_model("llama")
    mlp = model.get_submodule("model.layers.1.mlp")
    mlp.gate_proj, mlp.up_proj = nn.Linear(32, 48), nn.Linear(32, 48)
    mlp.down_proj = nn.Linear(48, 32)
    layout = layout_of(model)
    assert layout.widths == [64, 48, 64]
    assert [site.shape[-1] for site in sites(model, layout)] == layout.widths
