"""Batched answers, greedy or sampled with a seed."""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from toolkit.capture.base import render_text
from toolkit.models.load import LoadedModel

# Tokens between two looks at whether a text is settled: a look decodes every row.
LOOK_EVERY = 4


def generate(
    loaded: LoadedModel,
    texts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 32,
    on_prompts: Callable[[int], None] | None = None,
    seed: int | None = None,
    settled: Callable[[str], bool] | None = None,
) -> list[str]:
    """Answer each prompt, chat template applied: greedily, or by drawing with ``seed``.

    Prompts are sorted by length, padded on the left, and answered in batches; the answers
    come back in the order of ``texts``. A row whose answer has ended leaves its batch, so
    that the rest go on faster. Sampling settings that the model's folder brings are not
    used: the same model and prompts give the same answers.

    Args:
        loaded: the model, with any intervention active around the call.
        texts: the prompts.
        max_new_tokens: an answer's greatest length, in tokens.
        batch_size: prompts at a time.
        on_prompts: hears how many prompts were finished.
        seed: draw from the model's own distribution (temperature 1, nothing cut off); the
            draw depends on the batch size too. None answers greedily.
        settled: told the words of an answer so far, says whether the rest matters; an
            answer that is settled is cut there.
    """
    tokenizer = loaded.tokenizer
    templated = bool(tokenizer.chat_template)
    ids = [
        tokenizer(render_text(tokenizer, text), add_special_tokens=not templated)["input_ids"]
        for text in texts
    ]
    generator = None
    if seed is not None:
        generator = torch.Generator(loaded.device).manual_seed(seed)
    answers = [""] * len(texts)
    order = sorted(range(len(texts)), key=lambda row: (len(ids[row]), row))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        encoding = tokenizer.pad(
            {"input_ids": [ids[row] for row in rows]}, padding_side="left", return_tensors="pt"
        ).to(loaded.device)
        batch = _Batch(loaded, encoding["input_ids"], encoding["attention_mask"], generator)
        for place, tokens in batch.run(max_new_tokens, settled):
            answers[rows[place]] = tokenizer.decode(tokens, skip_special_tokens=True)
            if on_prompts is not None:
                on_prompts(1)
    return answers


class _Batch:
    """Rows that are answered together, fewer with every answer that ends."""

    def __init__(
        self, loaded: LoadedModel, ids: Tensor, attention: Tensor, generator: torch.Generator | None
    ) -> None:
        self._loaded = loaded
        self._ids, self._attention, self._generator = ids, attention, generator
        self._cache = DynamicCache(config=loaded.model.config)
        self._takes = set(inspect.signature(loaded.model.forward).parameters)
        ends = loaded.model.generation_config.eos_token_id
        ends = loaded.tokenizer.eos_token_id if ends is None else ends
        self._ends = set(ends) if isinstance(ends, list) else {ends}

    def run(
        self, max_new_tokens: int, settled: Callable[[str], bool] | None
    ) -> list[tuple[int, list[int]]]:
        """Each row's place and the tokens of its answer, in the order they ended."""
        rows = list(range(len(self._ids)))
        tokens: list[list[int]] = [[] for _ in rows]
        finished: list[tuple[int, list[int]]] = []
        for step in range(1, max_new_tokens + 1):
            chosen = self._choose(self._forward())
            for row, token in zip(rows, chosen.tolist(), strict=True):
                tokens[row].append(token)
            look = settled is not None and step % LOOK_EVERY == 0
            over = [
                tokens[row][-1] in self._ends
                or step == max_new_tokens
                or (look and settled is not None and settled(self._words(tokens[row])))
                for row in rows
            ]
            finished += [(row, tokens[row]) for row, done in zip(rows, over, strict=True) if done]
            if all(over):
                break
            self._ids = chosen[:, None]
            if any(over):
                kept = [place for place, done in enumerate(over) if not done]
                rows = [rows[place] for place in kept]
                self._keep(torch.tensor(kept, device=self._ids.device))
            grown = self._attention.new_ones((len(rows), 1))
            self._attention = torch.cat([self._attention, grown], dim=1)
        return finished

    def _forward(self) -> Tensor:
        """Logits of the next token, ``[rows, vocabulary]``."""
        # Padding is on the left: a row's positions count its own tokens alone.
        positions = (self._attention.cumsum(dim=1) - 1).clamp(min=0)[:, -self._ids.shape[1] :]
        extra = {"position_ids": positions, "logits_to_keep": 1}
        with torch.inference_mode():
            logits = self._loaded.model(
                input_ids=self._ids,
                attention_mask=self._attention,
                past_key_values=self._cache,
                use_cache=True,
                **{name: value for name, value in extra.items() if name in self._takes},
            ).logits
        last = logits[:, -1]
        assert isinstance(last, Tensor)
        return last

    def _choose(self, logits: Tensor) -> Tensor:
        if self._generator is None:
            return logits.argmax(dim=-1)
        probabilities = logits.float().softmax(dim=-1)
        return torch.multinomial(probabilities, 1, generator=self._generator)[:, 0]

    def _words(self, tokens: list[int]) -> str:
        """The answer so far without its last word, which may not be whole yet."""
        text = self._loaded.tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text.rpartition(" ")[0]

    def _keep(self, places: Tensor) -> None:
        self._ids, self._attention = self._ids[places], self._attention[places]
        self._cache.batch_select_indices(places)
