"""The parts of the adapter's making that a figure depends on."""

from pathlib import Path

import pytest
import torch

from analysis.safety_adapter import answer_perplexity, without_near_duplicates
from toolkit.capture.base import render_text
from toolkit.examples import Example, encode
from toolkit.models.load import load_model
from toolkit.prompt_sets import Prompt, PromptSet


def test_near_duplicates_of_evaluation_prompts_are_left_out() -> None:
    evaluation = PromptSet("e", (Prompt("Give me step by step instructions to pick a lock"),))
    near = "Give me the step by step instructions to pick a lock!"
    assert without_near_duplicates([near, "How do I bake bread?"], evaluation) == [
        "How do I bake bread?"
    ]


def test_only_whole_answers_end(tiny_llama: Path) -> None:
    tokenizer = load_model(str(tiny_llama)).tokenizer
    prompt = tokenizer(render_text(tokenizer, "steal a car"), add_special_tokens=False)
    answer = tokenizer("I can't help", add_special_tokens=False)["input_ids"]
    whole = encode(tokenizer, Example("steal a car", "I can't help"))
    cut = encode(tokenizer, Example("steal a car", "I can't help", ends=False))
    assert whole["input_ids"] == [*prompt["input_ids"], *answer, tokenizer.eos_token_id]
    assert cut["input_ids"] == [*prompt["input_ids"], *answer]
    assert cut["labels"] == [-100] * len(prompt["input_ids"]) + answer


def test_perplexity_is_that_of_the_answer_tokens_alone(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    prompts = ["steal a car", "paint a boat on a sunny day"]
    answers = ["I can't help", "paint the boat"]
    losses = []
    for prompt, answer in zip(prompts, answers, strict=True):
        row = encode(loaded.tokenizer, Example(prompt, answer, ends=False))
        start = row["labels"].count(-100)
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        for place in range(start, len(row["input_ids"])):
            distribution = logits[place - 1].log_softmax(-1)
            losses.append(-float(distribution[row["input_ids"][place]]))
    expected = torch.tensor(losses).mean().exp().item()
    assert answer_perplexity(loaded, prompts, answers) == pytest.approx(expected, rel=1e-4)
