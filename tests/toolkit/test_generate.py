"""Batched greedy answers against one prompt at a time through transformers alone."""

from pathlib import Path

import pytest
import torch

from tests.tiny import FAMILIES, HARMFUL, HARMLESS, save_tiny
from toolkit.capture.base import render_text
from toolkit.generate import LOOK_EVERY, generate
from toolkit.models.load import load_model

TEXTS = [*HARMFUL[:5], "Hi", *HARMLESS[:5]]


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_answer_as_single_prompts_do(family: str, tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny(tmp_path, family)))
    expected = []
    for text in TEXTS:
        ids = loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            tokens = loaded.model.generate(**ids, max_new_tokens=8, do_sample=False)
        expected.append(
            loaded.tokenizer.decode(
                tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True
            )
        )
    heard: list[int] = []
    assert generate(loaded, TEXTS, 8, batch_size=4, on_prompts=heard.append) == expected
    assert sum(heard) == len(TEXTS)


def test_sampling_settings_of_the_folder_are_not_used(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    before = generate(loaded, TEXTS, 8)
    loaded.model.generation_config.do_sample = True
    loaded.model.generation_config.temperature = 5.0
    assert generate(loaded, TEXTS, 8) == before


def test_a_row_that_ends_leaves_the_others_as_they_were(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    whole = generate(loaded, TEXTS, 12, batch_size=11)
    # Any token may end an answer: take one from the middle of an answer.
    prompt = loaded.tokenizer(render_text(loaded.tokenizer, TEXTS[0]), return_tensors="pt")
    told = loaded.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    end = int(told[0, prompt["input_ids"].shape[1] + 5])
    loaded.model.generation_config.eos_token_id = [2, end]
    cut = generate(loaded, TEXTS, 12, batch_size=11)
    assert cut != whole
    assert all(w.startswith(c) for w, c in zip(whole, cut, strict=True))


def test_settled_answers_are_cut_where_they_were_looked_at(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    whole = generate(loaded, TEXTS, 12)
    short = generate(loaded, TEXTS, LOOK_EVERY)
    heard: list[str] = []

    def settled(words: str) -> bool:
        heard.append(words)
        return True

    assert generate(loaded, TEXTS, 12, settled=settled) == short
    assert len(heard) == len(TEXTS)
    assert all(any(answer.startswith(words) for answer in short) for words in heard)
    assert generate(loaded, TEXTS, 12, settled=lambda words: False) == whole


def test_draws_repeat_with_their_seed(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
    first, again, other = (generate(loaded, TEXTS, 8, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
