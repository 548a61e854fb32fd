"""Batched greedy answers against one prompt at a time through transformers alone."""

from pathlib import Path

import torch

from tests.tiny import HARMFUL, HARMLESS
from toolkit.generate import generate
from toolkit.models.load import load_model

TEXTS = [*HARMFUL[:5], "Hi", *HARMLESS[:5]]


def test_batches_answer_as_single_prompts_do(tiny_llama: Path) -> None:
    loaded = load_model(str(tiny_llama))
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
