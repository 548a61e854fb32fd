"""Held-out looks: each figure against an independent computation, and ending early."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tiny import HARMFUL, HARMLESS
from toolkit.errors import SafeNeuronError
from toolkit.generate import generate
from toolkit.judge.refusal import judge_refusal
from toolkit.models.load import LoadedModel, load_model
from toolkit.train.heldout import KL_TOKENS, HeldOut, HeldOutCallback, Look, Watched, split
from toolkit.train.pairs import PreferencePair

BETA = 0.1


@pytest.fixture
def loaded(tiny_llama: Path) -> LoadedModel:
    return load_model(str(tiny_llama), device="cpu")


def held(every: int = 1, patience: int | None = None) -> HeldOut:
    pairs = [PreferencePair(prompt, "I can't help", f"Sure: {prompt}") for prompt in HARMFUL[:3]]
    return HeldOut(pairs, HARMFUL[:4], HARMLESS[:2], every, patience, answer_tokens=6)


def log_prob(loaded: LoadedModel, prompt: str, answer: str) -> float:
    """Summed log-probability of the answer's tokens, one after the other."""
    chat = [{"role": "user", "content": prompt}]
    text = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    total = 0.0
    for token in loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([ids])).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
        ids = [*ids, token]
    return total


def move(loaded: LoadedModel) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def test_at_the_start_nothing_has_moved(loaded: LoadedModel) -> None:
    loaded.model.train()
    seen = Watched(loaded, held(), BETA, "float32").look()
    assert seen.margin == pytest.approx(0, abs=1e-5)
    assert seen.kl == pytest.approx(0, abs=1e-6)
    assert loaded.model.training


def test_figures_against_one_token_at_a_time(loaded: LoadedModel) -> None:
    slice_ = held()
    watched = Watched(loaded, slice_, BETA, "float32")
    answers = generate(loaded, slice_.harmless, KL_TOKENS)
    before = load_model(str(loaded.folder.path), device="cpu")
    move(loaded)
    seen = watched.look()

    margins = [
        BETA
        * (
            (log_prob(loaded, p.prompt, p.chosen) - log_prob(before, p.prompt, p.chosen))
            - (log_prob(loaded, p.prompt, p.rejected) - log_prob(before, p.prompt, p.rejected))
        )
        for p in slice_.pairs
    ]
    assert seen.margin == pytest.approx(sum(margins) / 3, rel=1e-3)
    assert seen.accuracy == pytest.approx(sum(m > 0 for m in margins) / 3)

    divergence = []
    for prompt, answer in zip(slice_.harmless, answers, strict=True):
        chat = [{"role": "user", "content": prompt}]
        text = loaded.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        for token in loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]:
            with torch.no_grad():
                old, new = (
                    m.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                    for m in (before, loaded)
                )
            divergence.append(float(torch.nn.functional.kl_div(new, old.exp(), reduction="sum")))
            ids = [*ids, token]
    assert seen.kl == pytest.approx(sum(divergence) / len(divergence), rel=1e-3)
    assert seen.kl > 1e-3

    told = generate(loaded, slice_.harmful, 6)
    assert seen.refused_harmful == sum(judge_refusal(text).verdict == "refused" for text in told)


class Margins:
    """Sees the margins it is given."""

    def __init__(self, margins: list[float]) -> None:
        self._margins = iter(margins)

    def look(self) -> Look:
        return Look(next(self._margins), 0.5, 0.1, 3, 1)


def steps(
    callback: HeldOutCallback, first: int, last: int, folder: Path
) -> tuple[int | None, SimpleNamespace]:
    """Play the trainer; the step at which it is told to stop, if it is."""
    args = SimpleNamespace(device=torch.device("cpu"), output_dir=str(folder))
    control = SimpleNamespace(should_training_stop=False, should_save=False)
    for step in range(first, last + 1):
        state = SimpleNamespace(global_step=step - 1, max_steps=10, is_world_process_zero=True)
        callback.on_step_begin(args, state, control)
        state.global_step = step
        control.should_save = True
        callback.on_step_end(args, state, control)
        if control.should_training_stop:
            return step, control
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        callback.on_save(args, state, control)
    return None, control


def test_it_ends_when_the_margin_no_longer_rises(tmp_path: Path) -> None:
    margins = [0.0, 1.0, 2.0, 1.5, 1.9, 3.0]
    heard: list[dict[str, Any]] = []
    unbroken = HeldOutCallback(Margins(margins), held(1, 2), heard.append, None)  # type: ignore[arg-type]
    stopped, control = steps(unbroken, 1, 10, tmp_path / "a")
    assert stopped == 4
    assert not control.should_save
    looks = [event for event in heard if event["kind"] == "held-out"]
    assert [look["step"] for look in looks] == [0, 1, 2, 3, 4]
    assert "ended at step 4 of 10" in heard[-1]["text"]
    assert (looks[0]["harmful"], looks[0]["harmless"], looks[0]["pairs"]) == (4, 2, 3)

    # Killed after step 3 and gone on with, it ends at the same step.
    first = HeldOutCallback(Margins(margins), held(1, 2), heard.append, None)  # type: ignore[arg-type]
    assert steps(first, 1, 3, tmp_path / "b")[0] is None
    resumed = tmp_path / "b" / "checkpoint-3"
    second = HeldOutCallback(Margins(margins[4:]), held(1, 2), heard.append, resumed)  # type: ignore[arg-type]
    assert steps(second, 4, 10, tmp_path / "b")[0] == 4


def test_split_keeps_prompts_on_one_side() -> None:
    pairs = [PreferencePair(f"p{k // 2}", "yes", f"no {k}") for k in range(20)]
    trained, aside = split(pairs, 4, lambda below, count: list(range(below))[:count])
    assert [pair.prompt for pair in aside] == ["p0", "p0", "p1", "p1"]
    assert trained == pairs[4:]
    with pytest.raises(SafeNeuronError, match="too few to hold out 15"):
        split(pairs, 15, lambda below, count: list(range(below)))
