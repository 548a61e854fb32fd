"""Searches during training: the attacks' own, on the model as it is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.align_requests import AlignRequest
from analysis.attacks.adaptive import adaptive
from analysis.attacks.context import AttackContext
from analysis.attacks.neurostrike import neurostrike
from analysis.finding import FOUNDATION_SHARE, foundation_neurons, make_finder
from analysis.requests import AttackRequest
from tests.tiny import HARMFUL, HARMLESS
from toolkit.capture.base import render
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet
from toolkit.progress import silent
from toolkit.prompt_sets import PromptSet
from toolkit.prompts import read_prompts
from toolkit.train.finding import Found
from toolkit.train.recipes import Mixture

MIXTURE = Mixture(search_rounds=3, head=0.1, candidates=4, prompts=8)


@pytest.fixture
def loaded(tiny_llama: Path) -> LoadedModel:
    return load_model(str(tiny_llama), device="cpu")


@pytest.fixture
def request_(tiny_llama: Path, tmp_path: Path) -> AlignRequest:
    for name, texts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts), "utf-8")
    return AlignRequest(
        model=str(tiny_llama),
        recipe="adaptive",
        harmful=str(tmp_path / "harmful.txt"),
        harmless=str(tmp_path / "harmless.txt"),
        dtype="float32",
    )


def mask_of(loaded: LoadedModel, prompts: dict[str, PromptSet]) -> MaskFile:
    return MaskFile.of(
        NeuronSet(loaded.layout.widths, {0: [1, 2], 2: [5, 63]}),
        loaded.info,
        MethodInfo(name="es+sas", parameters={"top": 0.03, "position": "mean"}),
        MaskPrompts(harmful=prompts["harmful"].info(), harmless=prompts["harmless"].info()),
    )


def test_the_search_plays_the_adaptive_attack(loaded: LoadedModel, request_: AlignRequest) -> None:
    prompts = {s: read_prompts(getattr(request_, s))[:8] for s in ("harmful", "harmless")}
    mask = mask_of(loaded, prompts)
    loaded.model.train()
    found = make_finder(request_, loaded, mask, MIXTURE)()
    asked = AttackRequest(model=request_.model, rounds=3, dtype="float32", batch_size=16)
    context = AttackContext(loaded, mask, asked, prompts, silent)
    attacked = [step.plan.interventions[0].neurons for step in adaptive(context)[:-1]]
    total = NeuronSet.empty(loaded.layout.widths)
    for new, removed in zip(found.rounds, attacked, strict=True):
        assert not len(new & total)
        total = total | new
        assert total == removed
    assert found.head.fraction <= 0.1
    assert len(found.head) > 0.08 * found.head.total
    assert 0 < len(found.candidates) <= 4
    # The model is left as it was found: training, and with weights that train.
    assert loaded.model.training
    assert all(p.requires_grad for p in loaded.model.parameters())
    assert all(p.grad is None for p in loaded.model.parameters())


def test_it_plays_neurostrike_too_where_asked(
    loaded: LoadedModel, request_: AlignRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No weight of a layer of 64 stands out by three deviations.
    monkeypatch.setattr("analysis.attacks.neurostrike.TAU", 1.5)
    prompts = {s: read_prompts(getattr(request_, s))[:8] for s in ("harmful", "harmless")}
    mask = mask_of(loaded, prompts)
    found = make_finder(request_, loaded, mask, replace(MIXTURE, probe=0.1))()
    asked = AttackRequest(model=request_.model, dtype="float32", batch_size=16)
    (planned,) = neurostrike(AttackContext(loaded, mask, asked, prompts, silent))
    assert found.probed == planned.plan.interventions[0].neurons
    assert found.probed is not None
    assert len(found.probed)
    assert Found.from_json(json.loads(json.dumps(found.to_json()))) == found
    without = make_finder(request_, loaded, mask, MIXTURE)()
    assert without == replace(found, probed=None)
    assert Found.from_json(json.loads(json.dumps(without.to_json()))) == without


def test_it_sees_the_model_move(loaded: LoadedModel, request_: AlignRequest) -> None:
    prompts = {s: read_prompts(getattr(request_, s))[:8] for s in ("harmful", "harmless")}
    find = make_finder(request_, loaded, mask_of(loaded, prompts), MIXTURE)
    first = find()
    assert find() == first
    with torch.no_grad():
        loaded.model.model.layers[0].mlp.up_proj.weight.normal_(0.0, 1.0)
    assert find() != first


def test_neuronguard_s_probe(loaded: LoadedModel, request_: AlignRequest) -> None:
    guard = AlignRequest.model_validate(request_.model_dump() | {"recipe": "neuronguard"})
    found = make_finder(guard, loaded, None, MIXTURE)()
    assert found.rounds == (found.head,)
    # At most one in twenty of each layer's 64, and only with positive weights.
    assert 0 < found.head.counts().max() <= 3


def test_foundation_neurons_one_at_a_time(loaded: LoadedModel) -> None:
    prompts = read_prompts("harmless-train[:3]")
    found = foundation_neurons(loaded, prompts, batch_size=2)
    kept = [np.ones(width, dtype=bool) for width in loaded.layout.widths]
    for text in prompts.texts:
        rendered = render(loaded.tokenizer, text)
        own = torch.tensor(rendered.own)
        for layer, width in enumerate(loaded.layout.widths):
            down = loaded.layout.down(loaded.model, layer)
            seen: list[torch.Tensor] = []
            handle = down.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0][0]))
            with torch.no_grad():
                loaded.model(input_ids=torch.tensor([rendered.ids]))
            handle.remove()
            whole = down(seen[0])
            importance = []
            for j in range(width):
                without = seen[0].clone()
                without[:, j] = 0
                moved = (whole - down(without))[own]
                importance.append(float(moved.detach().norm()))
            order = np.argsort(-np.array(importance))[: round(FOUNDATION_SHARE * width)]
            chosen = np.zeros(width, dtype=bool)
            chosen[order] = True
            kept[layer] &= chosen
    assert found == NeuronSet.from_masks(kept)
    assert len(found)
