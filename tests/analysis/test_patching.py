"""Dynamic activation patching against reading everything again at every step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from analysis import patching
from analysis.patching import causal_effect
from tests.tiny import HARMFUL, save_tiny
from toolkit.errors import SafeNeuronError
from toolkit.generate import generate, prompt_ids
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet
from toolkit.patching import patched_answers

TOKENS = 6


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedModel, LoadedModel]:
    folders = [
        save_tiny(tmp_path_factory.mktemp(f"{request.param}{seed}"), request.param, seed)
        for seed in (0, 1)
    ]
    base, aligned = (load_model(str(folder), device="cpu") for folder in folders)
    return base, aligned


def some(loaded: LoadedModel) -> NeuronSet:
    return NeuronSet(loaded.layout.widths, {0: range(0, 60, 2), 2: range(40)})


def read_again(base: LoadedModel, aligned: LoadedModel, neurons: NeuronSet, text: str) -> str:
    """One prompt, nothing cached: both models read all of it before every token."""
    ids = prompt_ids(base, text)
    start = len(ids)
    for _ in range(TOKENS):
        held: dict[int, torch.Tensor] = {}
        handles = []
        for model, put in ((aligned, False), (base, True)):
            for layer, indices in neurons.layers().items():
                listed = indices.tolist()

                def hook(
                    _: object,
                    inputs: tuple[torch.Tensor, ...],
                    layer: int = layer,
                    chosen: list[int] = listed,
                    put: bool = put,
                    held: dict[int, torch.Tensor] = held,
                ) -> tuple[torch.Tensor, ...] | None:
                    if not put:
                        held[layer] = inputs[0][..., chosen]
                        return None
                    changed = inputs[0].clone()
                    changed[..., chosen] = held[layer]
                    return (changed,)

                down = model.layout.down(model.model, layer)
                handles.append(down.register_forward_pre_hook(hook))
            with torch.no_grad():
                logits = model.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        for handle in handles:
            handle.remove()
        ids = [*ids, int(logits.argmax())]
        if ids[-1] == base.tokenizer.eos_token_id:
            break
    return str(base.tokenizer.decode(ids[start:], skip_special_tokens=True))


def test_patched_answers_are_those_of_reading_again(
    pair: tuple[LoadedModel, LoadedModel],
) -> None:
    base, aligned = pair
    texts = [HARMFUL[0], "Hi", HARMFUL[7]]
    got = patched_answers(base, aligned, some(base), texts, TOKENS, batch_size=2)
    assert got == [read_again(base, aligned, some(base), text) for text in texts]
    plain = generate(base, texts, TOKENS)
    assert got != plain, "the patch has to show"
    nothing = NeuronSet.empty(base.layout.widths)
    assert patched_answers(base, aligned, nothing, texts, TOKENS) == plain
    # A model patched with its own neurons is itself.
    assert patched_answers(base, base, some(base), texts, TOKENS) == plain


def test_the_effect_is_the_share_of_the_gain(
    pair: tuple[LoadedModel, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, aligned = pair
    neurons = some(base)
    texts = HARMFUL[:8]
    everything = [
        generate(base, texts, 3),
        generate(aligned, texts, 3),
        patched_answers(base, aligned, neurons, texts, 3),
        patched_answers(base, aligned, neurons.random_like(0), texts, 3),
    ]
    # Random models refuse nothing: let any answer with an "e" be a refusal.
    refuses = {text: "e" in text for answers in everything for text in answers}
    monkeypatch.setattr(
        patching, "_refused", lambda answers: np.array([refuses[text] for text in answers])
    )
    k = [sum(refuses[text] for text in answers) for answers in everything]
    if k[0] == k[1]:
        refuses |= dict.fromkeys(everything[1], True) | dict.fromkeys(everything[0], False)
        k = [sum(refuses[text] for text in answers) for answers in everything]
    found = causal_effect(base, aligned, neurons, texts, 3)
    assert [p.k for p in (found.base, found.aligned, found.patched, found.random)] == k
    assert found.effect == pytest.approx((k[2] - k[0]) / (k[1] - k[0]))
    assert found.random_effect == pytest.approx((k[3] - k[0]) / (k[1] - k[0]))
    if not np.isnan(found.low):
        assert found.low <= found.effect <= found.high


def test_models_that_can_t_be_patched(
    pair: tuple[LoadedModel, LoadedModel], tmp_path: Path
) -> None:
    base, aligned = pair
    with pytest.raises(SafeNeuronError, match="refuse equally often"):
        causal_effect(base, base, some(base), HARMFUL[:2], 2)
    other = "gpt2" if base.model.config.model_type == "llama" else "llama"
    stranger = load_model(str(save_tiny(tmp_path / other, other)))
    with pytest.raises(SafeNeuronError, match="have different shapes"):
        patched_answers(base, stranger, some(base), ["Hi"], 2)
    with pytest.raises(SafeNeuronError, match="the neuron set is for"):
        patched_answers(base, aligned, NeuronSet([3], {0: [1]}), ["Hi"], 2)
