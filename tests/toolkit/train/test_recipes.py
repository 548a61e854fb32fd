"""Recipes: the papers' numbers to the letter, and a request that leaves open what it may."""

import json
from dataclasses import asdict, replace

import pytest

from analysis.align_requests import AlignRequest
from analysis.requests import parse_request
from toolkit.errors import SafeNeuronError
from toolkit.train.recipes import RECIPE_NAMES, RECIPES, Mixture, Settings, with_preset


def test_the_papers_numbers() -> None:
    for name in ("dpo", "safeneuron", "random-freeze"):
        paper = RECIPES[name].paper
        assert (paper.beta, paper.learning_rate, paper.weight_decay) == (0.1, 5e-6, 0.05)
        assert (paper.epochs, paper.sft_weight) == (3.0, 0.0)
    assert (RECIPES["sn-tune"].paper.learning_rate, RECIPES["sn-tune"].paper.steps) == (1e-6, 50)
    guard = RECIPES["neuronguard"].paper
    assert (guard.lora_rank, guard.lora_alpha, guard.epochs) == (32, 64, 10.0)
    assert (guard.learning_rate, guard.find_every) == (1e-5, 200)
    assert tuple(RECIPES) == RECIPE_NAMES


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_a_request_takes_its_recipe_s_preset(name: str) -> None:
    recipe = RECIPES[name]
    for preset in ("two-core", "paper"):
        request = AlignRequest(model="m", recipe=name, preset=preset)
        numbers = recipe.numbers(preset)
        for field, value in asdict(numbers).items():
            assert getattr(request, field) == value, field
        assert request.zero == recipe.zero
        settings = request.settings(pairs=1000)
        assert isinstance(settings, Settings)
        expected = numbers.steps
        if numbers.epochs is not None:
            expected = -(-int(numbers.epochs * 1000) // numbers.batch_size)
        assert settings.steps == expected
        assert settings.save_every == max(1, expected // 4)


def test_what_is_given_stays_and_a_stored_request_reads_back() -> None:
    request = AlignRequest(model="m", recipe="sn-tune", learning_rate=1e-5, beta=None)
    assert (request.learning_rate, request.weight_decay, request.beta) == (1e-5, 0.0, 0.1)
    for recipe in RECIPE_NAMES:
        for preset in ("two-core", "paper"):
            first = AlignRequest(model="m", recipe=recipe, preset=preset)
            stored = json.loads(first.model_dump_json())
            assert parse_request(AlignRequest, stored) == first
    # Steps take the place of the preset's epochs; epochs that are asked for win.
    assert with_preset({"preset": "paper", "steps": 5})["epochs"] is None
    assert AlignRequest(model="m", preset="paper", steps=5).settings(1000).steps == 5
    assert AlignRequest(model="m", epochs=0.5, batch_size=4).settings(10).steps == 2
    weights = AlignRequest(model="m", recipe="neuronguard", preset="paper", lora_rank=0)
    stored = json.loads(weights.model_dump_json())
    assert parse_request(AlignRequest, stored).lora_rank == 0


def test_an_unknown_recipe_is_refused_in_one_line() -> None:
    with pytest.raises(SafeNeuronError, match="recipe 'rlhf'") as caught:
        parse_request(AlignRequest, {"model": "m", "recipe": "rlhf"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"recipe": "adaptive", "zero": False}, "removes neurons at every step"),
        ({"recipe": "dpo", "reference": "zeroed"}, "no frozen neurons"),
        ({"recipe": "sn-tune", "reference": "zeroed"}, "no frozen neurons"),
        ({"recipe": "dpo", "mixture": {"hold": 0.5}}, "draws nothing"),
        ({"recipe": "adaptive", "mixture": {"holds": 0.5}}, "mix has no holds"),
        ({"recipe": "adaptive", "mixture": {"hold": 1.5}}, "mix hold is 1.5"),
        ({"recipe": "adaptive", "mixture": {"held": 2.5}}, "mix held is 2.5"),
        ({"recipe": "adaptive", "mixture": {"head": 0}}, "mix head is 0"),
        (
            {
                "recipe": "adaptive",
                "mixture": dict.fromkeys(("whole", "rounds", "share", "hold"), 0),
            },
            "mix draws nothing",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(
    given: dict[str, object], told: str
) -> None:
    with pytest.raises(SafeNeuronError, match=told) as caught:
        parse_request(AlignRequest, {"model": "m", **given})
    assert "\n" not in str(caught.value)


def test_a_mixture_is_the_usual_one_but_for_what_is_given() -> None:
    changed = {"hold": "0.25", "held": 2, "refusing": 0.5}
    asked = parse_request(AlignRequest, {"model": "m", "recipe": "adaptive", "mixture": changed})
    assert asked.settings(100).mixture == replace(Mixture(), hold=0.25, held=2, refusing=0.5)
    assert AlignRequest(model="m", recipe="adaptive").settings(100).mixture == Mixture()
