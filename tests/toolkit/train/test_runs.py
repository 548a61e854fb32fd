"""A run's objective, whichever way its batch is taken, and what it leaves behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import HARMFUL
from toolkit.errors import SafeNeuronError
from toolkit.models.load import LoadedModel, load_model
from toolkit.train.build import pair_length
from toolkit.train.dpo import TrainOutcome, newest_checkpoint, train
from toolkit.train.pairs import PreferencePair
from toolkit.train.recipes import Settings
from toolkit.train.watch import WHOLE, seconds_until

ANSWER = "I can't help with that, but I can help you look for a legal way instead"
# Chosen answers of many lengths; at a batch of 4 the last of an epoch has 2 pairs.
PAIRS = [
    PreferencePair(prompt, ANSWER[: 20 + 5 * place], f"Sure: {prompt}")
    for place, prompt in enumerate(HARMFUL[:10])
]
SETTINGS = Settings(
    recipe="dpo",
    zero=False,
    steps=4,
    batch_size=4,
    learning_rate=1e-3,
    weight_decay=0.1,
    beta=0.1,
    sft_weight=1.0,
    max_length=128,
    save_every=10,
    seed=0,
    dtype="float32",
)


def run(
    model: Path, folder: Path, settings: Settings = SETTINGS, **more: Any
) -> tuple[LoadedModel, TrainOutcome, list[dict[str, Any]]]:
    loaded = load_model(str(model))
    heard: list[dict[str, Any]] = []
    stop = more.pop("stop", lambda: False)
    outcome = train(loaded, PAIRS, None, settings, folder, heard.append, stop, **more)
    return loaded, outcome, [event for event in heard if event["kind"] == "train"]


@pytest.mark.parametrize("recipe", ["dpo", "sft"])
def test_the_parts_that_a_batch_is_taken_in_change_nothing(
    recipe: Any, tiny_llama: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, recipe=recipe)
    whole, _, told = run(tiny_llama, tmp_path / "whole", settings)
    parts, _, same = run(tiny_llama, tmp_path / "parts", replace(settings, micro_batch=1))
    for one, other in zip(told, same, strict=True):
        for name in ("loss", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-4), (one["step"], name)
    after = dict(parts.model.named_parameters())
    for name, tensor in whole.model.named_parameters():
        # A step of Adam is as long as the rate, however small the gradient.
        assert (after[name] - tensor).abs().mean() < 1e-2 * SETTINGS.learning_rate, name


@pytest.mark.parametrize("rank", [0, 4])
def test_the_model_is_left_plain(rank: int, tiny_llama: Path, tmp_path: Path) -> None:
    found = load_model(str(tiny_llama))
    settings = replace(SETTINGS, lora_rank=rank, dtype="bfloat16")
    loaded, outcome, _ = run(tiny_llama, tmp_path / "run", settings)
    assert outcome.finished
    assert not {"forward", "_original_forward"} & vars(loaded.model).keys()
    assert loaded.model.forward.__func__ is type(loaded.model).forward
    assert not loaded.model.training
    assert loaded.model.config.to_dict() == found.model.config.to_dict()
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_run_that_fails_leaves_the_model_plain_too(tiny_llama: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_llama))

    def stop() -> bool:
        raise SafeNeuronError("stopped")

    with pytest.raises(SafeNeuronError, match="stopped"):
        train(loaded, PAIRS, None, SETTINGS, tmp_path, lambda _: None, stop)
    assert "forward" not in vars(loaded.model)
    assert not loaded.model.training


@pytest.mark.parametrize("steps", [4, 3])  # within an epoch, and at the end of one
def test_after_the_last_checkpoint_no_step_is_trained(
    steps: int, tiny_llama: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=steps)
    first, done, _ = run(tiny_llama, tmp_path / "run", settings)
    # As where a run is killed while its result is written: the checkpoint is all there is.
    again, outcome, told = run(tiny_llama, tmp_path / "run", settings)
    assert told == []
    assert outcome.finished
    assert replace(outcome, seconds=done.seconds) == done
    assert done.steps == steps
    after = dict(again.model.named_parameters())
    for name, tensor in first.model.named_parameters():
        assert torch.equal(after[name], tensor), name


def test_the_first_step_stays_the_first_when_resumed(tiny_llama: Path, tmp_path: Path) -> None:
    _, unbroken, told = run(tiny_llama, tmp_path / "unbroken")
    _, half, _ = run(tiny_llama, tmp_path / "run", stop=lambda: True)
    assert (half.finished, half.steps) == (False, 1)
    _, outcome, _ = run(tiny_llama, tmp_path / "run")
    assert outcome.first == unbroken.first
    assert outcome.last == unbroken.last
    assert outcome.first["loss"] == told[0]["loss"]


def test_seconds_are_those_of_all_processes(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _, half, _ = run(tiny_llama, folder, stop=lambda: True)
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    assert 0 < seconds_until(checkpoint) <= half.seconds + 0.1  # rounded twice
    (checkpoint / WHOLE).write_text("1000.0", "utf-8")
    _, outcome, told = run(tiny_llama, folder)
    assert [event["seconds"] > 1000 for event in told] == [True] * 3
    assert 1000 < outcome.seconds < 1000 + 60


def test_pairs_are_as_long_as_the_trainer_makes_them(tiny_llama: Path, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_llama))
    longest = max(PAIRS, key=lambda pair: pair_length(loaded, pair))
    length = pair_length(loaded, longest)
    _, whole, _ = run(tiny_llama, tmp_path / "whole", replace(SETTINGS, steps=1, max_length=999))
    _, exact, _ = run(tiny_llama, tmp_path / "exact", replace(SETTINGS, steps=1, max_length=length))
    assert exact.first == whole.first
