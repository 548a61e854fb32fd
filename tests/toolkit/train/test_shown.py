"""The pairs an adaptive run is shown: how many of a kind, how often, in which frames."""

import json
import random
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from toolkit.models.load import load_model
from toolkit.neurons import NeuronSet
from toolkit.train import build
from toolkit.train.dpo import train
from toolkit.train.frames import framed, shipped_frames
from toolkit.train.pairs import PreferencePair, shipped_refusals
from toolkit.train.recipes import RECIPES, Mixture, RecipeName, Settings
from toolkit.train.shown import shown_pairs

REFUSAL = shipped_refusals()[0]
REFUSING = [PreferencePair(f"Harm {n}.", REFUSAL, f"Sure {n}") for n in range(5)]
ANSWERING = [PreferencePair(f"Help {n}.", f"Sure {n}", REFUSAL) for n in range(10)]
PAIRS = [pair for n in range(5) for pair in (REFUSING[n], *ANSWERING[2 * n : 2 * n + 2])]


def always(_: PreferencePair) -> bool:
    return True


def test_without_either_the_pairs_stay_as_they_are() -> None:
    assert shown_pairs(PAIRS, Mixture(refusing=None, frames=0.0), 99, 0, always) == PAIRS


def test_so_many_teach_refusing_and_none_is_shown_twice_before_all_are_once() -> None:
    shown = shown_pairs(PAIRS, Mixture(refusing=0.75, frames=0.0), 16, 3, always)
    times = Counter(shown)
    assert sum(times[pair] for pair in REFUSING) == 12
    assert sum(times[pair] for pair in ANSWERING) == 4
    assert sorted(times[pair] for pair in REFUSING) == [2, 2, 2, 3, 3]
    assert max(times[pair] for pair in ANSWERING) == 1
    # In another order than one kind after the other, and again the same with the same seed.
    assert [pair in REFUSING for pair in shown] != [True] * 12 + [False] * 4
    assert shown == shown_pairs(PAIRS, Mixture(refusing=0.75, frames=0.0), 16, 3, always)
    assert shown != shown_pairs(PAIRS, Mixture(refusing=0.75, frames=0.0), 16, 4, always)


def test_pairs_of_one_kind_have_nothing_to_weigh() -> None:
    shown = shown_pairs(REFUSING, Mixture(refusing=0.25, frames=0.0), 10, 0, always)
    assert Counter(shown) == dict.fromkeys(REFUSING, 2)


def test_frames_change_the_prompt_alone_and_give_way_to_the_limit() -> None:
    mixture = Mixture(refusing=None, frames=0.5)
    shown = shown_pairs(PAIRS, mixture, 4000, 0, always)
    bare = {(pair.chosen, pair.rejected): pair.prompt for pair in PAIRS}
    assert all(bare[pair.chosen, pair.rejected] in pair.prompt for pair in shown)
    before, after = (shipped_frames()[side] for side in ("before", "after"))
    for sentences, at in ((before, str.startswith), (after, str.endswith)):
        count = sum(any(at(pair.prompt, s) for s in sentences) for pair in shown)
        # Within four standard errors of a half, of either kind of prompt.
        assert abs(count / 4000 - 0.5) < 4 * 0.5 / 4000**0.5
    limit = 40
    short = shown_pairs(PAIRS, mixture, 4000, 0, lambda pair: len(pair.prompt) <= limit)
    assert all(len(pair.prompt) <= limit for pair in short)
    assert any(pair.prompt not in bare.values() for pair in short)


@pytest.mark.parametrize(
    ("text", "middle"),
    [("Bake a cake", "Bake a cake."), (" Why? ", "Why?"), ('Say "no"', 'Say "no"')],
)
def test_a_frame_joins_as_a_person_would_write_it(text: str, middle: str) -> None:
    both = framed(text, 1.0, random.Random(0))
    first, last = (
        next(s for s in shipped_frames()[side] if at(both, s))
        for side, at in (("before", str.startswith), ("after", str.endswith))
    )
    assert both == f"{first} {middle} {last}"
    assert framed(text, 0.0, random.Random(0)) == text.strip()


def test_frames_are_sentences_without_repeats() -> None:
    for sentences in shipped_frames().values():
        assert len(set(sentences)) == len(sentences) == 24
        assert all(s == s.strip() and s[-1] in ".?" and s[0].isupper() for s in sentences)
    assert not set(shipped_frames()["before"]) & set(shipped_frames()["after"])
    shipped = files("toolkit").joinpath("data/frames.json").read_text("utf-8")
    assert json.loads(shipped)["licence"] == "Apache-2.0"


def test_adaptive_alone_draws_its_pairs() -> None:
    assert [name for name, recipe in RECIPES.items() if recipe.draws] == ["adaptive"]


@pytest.mark.parametrize("recipe", ["adaptive", "safeneuron"])
def test_a_run_trains_on_what_is_shown(
    recipe: RecipeName, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(str(tiny_llama))
    settings = Settings(
        recipe=recipe,
        zero=True,
        steps=3,
        batch_size=4,
        learning_rate=1e-3,
        weight_decay=0.1,
        beta=0.1,
        sft_weight=1.0,
        max_length=256,
        save_every=3,
        seed=5,
        dtype="float32",
        mixture=Mixture(refusing=0.75, frames=1.0),
    )
    texts: list[str] = []
    usual = build._dataset

    def noted(columns: dict[str, list[Any]], *rest: Any) -> Any:
        texts.extend(map(str, columns["prompt"]))
        return usual(columns, *rest)

    monkeypatch.setattr(build, "_dataset", noted)
    neurons = NeuronSet(loaded.layout.widths, {0: [0, 7]})
    outcome = train(loaded, PAIRS, neurons, settings, tmp_path, lambda _: None, lambda: False)
    assert outcome.finished
    refusing = sum(any(pair.prompt in text for pair in REFUSING) for text in texts)
    opened = sum(any(s in text for s in shipped_frames()["before"]) for text in texts)
    expected = (12, 9, 12) if recipe == "adaptive" else (len(PAIRS), len(REFUSING), 0)
    assert (len(texts), refusing, opened) == expected
