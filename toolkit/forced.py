"""Teacher forcing: a model's logits over answers that are given to it."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolkit.examples import IGNORED, Example, encode
from toolkit.models.load import LoadedModel


@dataclass(frozen=True)
class Forced:
    """A prompt and an answer to it, as token ids; the answer has at least one."""

    prompt: list[int]
    answer: list[int]


def forced(tokenizer: Any, prompt: str, answer: str, limit: int | None = None) -> Forced:
    """A prompt, chat template applied, and an answer to it.

    Args:
        tokenizer: of the model that is to read them.
        prompt: the user's message.
        answer: the assistant's. An empty one has no tokens, and can't be read.
        limit: tokens of both that are kept; None for all.
    """
    row = encode(tokenizer, Example(prompt, answer, ends=False))
    ids, before = row["input_ids"][:limit], row["labels"].count(IGNORED)
    return Forced(ids[:before], ids[before:])


def answer_logits(loaded: LoadedModel, rows: Sequence[Forced]) -> list[Tensor]:
    """Logits that predict each answer's tokens, ``[answer tokens, vocabulary]`` a row.

    They are in the model's own type. Rows are padded on the left, as when answering, so
    that all answers end together and no logits of prompts are made where the model lets
    one choose.

    Args:
        loaded: the model, with any intervention active around the call.
        rows: what is read in one batch.
    """
    # The last token predicts nothing that is asked for.
    inputs = [row.prompt + row.answer[:-1] for row in rows]
    encoding = loaded.tokenizer.pad(
        {"input_ids": inputs}, padding_side="left", return_tensors="pt"
    ).to(loaded.device)
    attention = encoding["attention_mask"]
    longest = max(len(row.answer) for row in rows)
    extra = {
        "position_ids": (attention.cumsum(dim=1) - 1).clamp(min=0),
        "logits_to_keep": longest,
        "use_cache": False,
    }
    takes = set(inspect.signature(loaded.model.forward).parameters)
    with torch.inference_mode():
        logits = loaded.model(
            input_ids=encoding["input_ids"],
            attention_mask=attention,
            **{name: value for name, value in extra.items() if name in takes},
        ).logits
    return [logits[place, -len(row.answer) :] for place, row in enumerate(rows)]
