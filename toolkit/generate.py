"""Batched answers, greedy or sampled with a seed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from toolkit.capture.base import render_text
from toolkit.models.load import LoadedModel


def generate(
    loaded: LoadedModel,
    texts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 32,
    on_prompts: Callable[[int], None] | None = None,
    seed: int | None = None,
) -> list[str]:
    """Answer each prompt, chat template applied: greedily, or by drawing with ``seed``.

    Prompts are sorted by length, padded on the left, and answered in batches; the answers
    come back in the order of ``texts``. Sampling settings that the model's folder brings
    are not used: the same model and prompts give the same answers.

    Args:
        loaded: the model, with any intervention active around the call.
        texts: the prompts.
        max_new_tokens: an answer's greatest length, in tokens.
        batch_size: prompts at a time.
        on_prompts: hears how many prompts each batch finished.
        seed: draw from the model's own distribution (temperature 1, nothing cut off); the
            draw depends on the batch size too. None answers greedily.
    """
    tokenizer = loaded.tokenizer
    templated = bool(tokenizer.chat_template)
    ids = [
        tokenizer(render_text(tokenizer, text), add_special_tokens=not templated)["input_ids"]
        for text in texts
    ]
    answers = [""] * len(texts)
    drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if seed is not None:
        drawn: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        torch.manual_seed(seed)
    order = sorted(range(len(texts)), key=lambda row: (len(ids[row]), row))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        encoding = tokenizer.pad(
            {"input_ids": [ids[row] for row in rows]}, padding_side="left", return_tensors="pt"
        ).to(loaded.device)
        with torch.inference_mode():
            tokens = loaded.model.generate(
                input_ids=encoding["input_ids"],
                attention_mask=encoding["attention_mask"],
                max_new_tokens=max_new_tokens,
                **drawn,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = tokens[:, encoding["input_ids"].shape[1] :]
        for row, answer in zip(
            rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            answers[row] = answer
        if on_prompts is not None:
            on_prompts(len(rows))
    return answers
