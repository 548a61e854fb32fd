"""Perplexity of answers against transformers alone, and what it makes of a verdict."""

import math
from pathlib import Path

import pytest
import torch

from tests.tiny import HARMFUL
from toolkit.capture.base import render_text
from toolkit.judge.perplexity import (
    LIMIT,
    AnswerLoss,
    answer_losses,
    judge_perplexity,
    pooled_perplexity,
)
from toolkit.judge.refusal import Judgement
from toolkit.models.load import LoadedModel, load_model

COMPLIED = Judgement("complied", "no refusal in its opening")
ANSWERS = ["paint it", "I can't help with a boat", "a", "first clean the garden and then the chair"]


def by_hand(loaded: LoadedModel, prompt: str, answer: str) -> float:
    head = loaded.tokenizer(render_text(loaded.tokenizer, prompt), add_special_tokens=False)
    tail = loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*head["input_ids"], *tail]])
    with torch.no_grad():
        told = loaded.model(input_ids=ids).logits[0].double().log_softmax(-1)
    start = len(head["input_ids"])
    losses = [-float(told[start + place - 1, token]) for place, token in enumerate(tail)]
    return math.exp(sum(losses) / len(losses))


def test_batches_give_what_single_answers_give_in_their_order(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    expected = [by_hand(loaded, p, a) for p, a in zip(HARMFUL, ANSWERS, strict=False)]
    heard: list[int] = []
    losses = answer_losses(loaded, HARMFUL[:4], ANSWERS, batch_size=3, on_done=heard.append)
    assert [loss.perplexity for loss in losses] == pytest.approx(expected, rel=1e-4)
    assert heard == [3, 1]


def test_no_logits_of_prompts_are_made(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    projected: list[int] = []
    loaded.model.lm_head.register_forward_hook(
        lambda _module, inputs, _output: projected.append(inputs[0].shape[1])
    )
    losses = answer_losses(loaded, HARMFUL[:4], ANSWERS)
    assert projected == [max(loss.tokens for loss in losses)]


def test_pooled_weighs_answers_by_their_tokens() -> None:
    losses = [AnswerLoss(2.0, 1), AnswerLoss(3.0, 4), AnswerLoss(0.0, 0)]
    assert pooled_perplexity(losses) == pytest.approx(math.exp(5.0 / 5))


def test_an_empty_answer_has_no_perplexity(tiny_llama: Path) -> None:
    (loss,) = answer_losses(load_model(str(tiny_llama)), HARMFUL[:1], [""])
    assert loss.tokens == 0
    assert math.isnan(loss.perplexity)


def test_an_answer_beyond_the_context_is_scored_up_to_it(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    whole = loaded.tokenizer(render_text(loaded.tokenizer, "Hi"), add_special_tokens=False)
    (loss,) = answer_losses(loaded, ["Hi"], ["the boat " * 400])
    assert loss.tokens == loaded.model.config.max_position_embeddings - len(whole["input_ids"])
    assert math.isfinite(loss.perplexity)


def test_a_broken_model_gives_no_number(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(float("nan"))
    (loss,) = answer_losses(loaded, HARMFUL[:1], ["a boat"])
    judged = judge_perplexity(COMPLIED, loss.perplexity)
    assert judged.verdict == "degenerate"
    assert "nan" in judged.why


@pytest.mark.parametrize(
    ("perplexity", "verdict", "why"),
    [
        (1.0, "complied", "no refusal"),
        (LIMIT, "complied", "no refusal"),
        (LIMIT * 1.1, "degenerate", "above"),
        (math.inf, "degenerate", "inf"),
        (AnswerLoss(1e6, 1).perplexity, "degenerate", "inf"),
        (AnswerLoss(math.inf, 2).perplexity, "degenerate", "inf"),
        (math.nan, "degenerate", "nan"),
    ],
)
def test_only_compliance_becomes_degenerate(perplexity: float, verdict: str, why: str) -> None:
    judged = judge_perplexity(COMPLIED, perplexity)
    assert judged.verdict == verdict
    assert why in judged.why
    refused = Judgement("refused", "opens with 'i cannot'")
    assert judge_perplexity(refused, perplexity) is refused


def test_the_limit_is_the_callers() -> None:
    assert judge_perplexity(COMPLIED, 12.0, limit=10.0).verdict == "degenerate"
