"""Batched answers, greedy or sampled with a seed; each row under a plan of its own."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from toolkit.capture.base import render_text
from toolkit.models.load import LoadedModel
from toolkit.rows import RowPlans

# Tokens between two looks at whether a text is settled: a look decodes every row.
LOOK_EVERY = 4
OnTokens = Callable[[int, Sequence[int]], None]
"""Hears of a row, by its place in the batch, the tokens of its answer so far."""


@dataclass(frozen=True)
class Reply:
    """One answer.

    Args:
        text: its words.
        tokens: how many tokens were generated.
        broken: the model's logits were not finite, so the answer stops there.
    """

    text: str
    tokens: int
    broken: bool = False


def prompt_ids(loaded: LoadedModel, text: str) -> list[int]:
    """Token ids of a prompt with the chat template applied."""
    templated = bool(loaded.tokenizer.chat_template)
    rendered = render_text(loaded.tokenizer, text)
    return list(loaded.tokenizer(rendered, add_special_tokens=not templated)["input_ids"])


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

    Prompts are sorted by length and answered in batches; the answers come back in the
    order of ``texts``. Sampling settings that the model's folder brings are not used: the
    same model and prompts give the same answers.

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
    ids = [prompt_ids(loaded, text) for text in texts]
    generator = None
    if seed is not None:
        generator = torch.Generator(loaded.device).manual_seed(seed)
    answers = [""] * len(texts)
    order = sorted(range(len(texts)), key=lambda row: (len(ids[row]), row))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        prompts = [ids[row] for row in rows]
        replies = answer_batch(loaded, prompts, max_new_tokens, generator, settled)
        for row, reply in zip(rows, replies, strict=True):
            answers[row] = reply.text
        if on_prompts is not None:
            on_prompts(len(rows))
    return answers


class SharedPrefix:
    """What all prompts begin with, run once under each plan instead of once a row.

    A chat template opens every prompt alike, often with half of its tokens.

    Args:
        loaded: the model.
        prompts: token ids of all rows that are to come.
        plans: what is done to the model, already attached.
    """

    def __init__(self, loaded: LoadedModel, prompts: Sequence[list[int]], plans: RowPlans) -> None:
        self.ids = _common_prefix(prompts)
        self._layers: list[tuple[Tensor, Tensor]] = []
        if self.ids:
            # All plans in one batch: each row its own.
            batch = _batch(loaded, [self.ids] * len(plans), None, plans, range(len(plans)))
            batch.forward()
            self._layers = batch.cached()

    def cache(self, loaded: LoadedModel, plan_of: Sequence[int]) -> DynamicCache:
        """A cache that holds the prefix for rows of these plans."""
        cache = DynamicCache(config=loaded.model.config)
        rows = torch.tensor(list(plan_of), device=loaded.device)
        for layer, (keys, values) in enumerate(self._layers):
            cache.update(keys[rows], values[rows], layer)
        return cache


def _common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens all prompts begin with, leaving each at least one of its own."""
    if not prompts:
        return []
    first, last = min(prompts), max(prompts)
    longest = min(len(prompt) for prompt in prompts) - 1
    same = (a == b for a, b in zip(first, last, strict=False))
    length = next((place for place, equal in enumerate(same) if not equal), longest)
    return first[: min(length, longest)]


def answer_batch(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    generator: torch.Generator | None = None,
    settled: Callable[[str], bool] | None = None,
    plans: RowPlans | None = None,
    plan_of: Sequence[int] = (),
    prefix: SharedPrefix | None = None,
    on_tokens: OnTokens | None = None,
) -> list[Reply]:
    """Answer the rows of one batch, padded on the left.

    A row whose answer has ended leaves the batch, so that the rest go on faster.

    Args:
        loaded: the model.
        prompts: token ids of each row.
        max_new_tokens: an answer's greatest length, in tokens.
        generator: draws the tokens; None answers greedily.
        settled: as for :func:`generate`.
        plans: what is done to the model, already attached; None for nothing.
        plan_of: for each row the place of its plan in ``plans``.
        prefix: what the prompts begin with, under these plans.
        on_tokens: hears after every token of a row the tokens of its answer so far; what it
            raises ends the batch.
    """
    batch = _batch(loaded, prompts, generator, plans, plan_of, prefix)
    replies = [Reply("", 0)] * len(prompts)
    for place, tokens, broken in batch.run(max_new_tokens, settled, on_tokens):
        text = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
        replies[place] = Reply(text, len(tokens), broken)
    return replies


def next_token_logits(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    plans: RowPlans | None = None,
    plan_of: Sequence[int] = (),
) -> Tensor:
    """Logits of each prompt's next token, ``[rows, vocabulary]``, in float64.

    Args:
        loaded: the model.
        prompts: token ids of each row.
        plans: what is done to the model, already attached; None for nothing.
        plan_of: for each row the place of its plan in ``plans``.
    """
    batch = _batch(loaded, prompts, None, plans, plan_of)
    return batch.forward().double()


def _batch(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    generator: torch.Generator | None,
    plans: RowPlans | None,
    plan_of: Sequence[int],
    prefix: SharedPrefix | None = None,
) -> "AnswerBatch":
    begun = len(prefix.ids) if prefix is not None else 0
    encoding = loaded.tokenizer.pad(
        {"input_ids": [ids[begun:] for ids in prompts]}, padding_side="left", return_tensors="pt"
    ).to(loaded.device)
    if plans is not None:
        plans.assign(plan_of)
    ids, attention = encoding["input_ids"], encoding["attention_mask"]
    if prefix is None or not begun:
        cache = DynamicCache(config=loaded.model.config)
    else:
        cache = prefix.cache(loaded, plan_of)
        attention = torch.cat([attention.new_ones((len(ids), begun)), attention], dim=1)
    return AnswerBatch(loaded, ids, attention, generator, plans, cache)


class AnswerBatch:
    """Rows that are answered together, fewer with every answer that ends."""

    def __init__(
        self,
        loaded: LoadedModel,
        ids: Tensor,
        attention: Tensor,
        generator: torch.Generator | None,
        plans: RowPlans | None,
        cache: DynamicCache,
    ) -> None:
        self._loaded = loaded
        self._ids, self._attention, self._generator = ids, attention, generator
        self._plans = plans
        self._cache = cache
        self._takes = set(inspect.signature(loaded.model.forward).parameters)
        ends = loaded.model.generation_config.eos_token_id
        ends = loaded.tokenizer.eos_token_id if ends is None else ends
        self._ends = set(ends) if isinstance(ends, list) else {ends}

    def run(
        self,
        max_new_tokens: int,
        settled: Callable[[str], bool] | None,
        on_tokens: OnTokens | None = None,
    ) -> list[tuple[int, list[int], bool]]:
        """Each row's place, the tokens of its answer and whether its logits broke."""
        rows = list(range(len(self._ids)))
        tokens: list[list[int]] = [[] for _ in rows]
        finished: list[tuple[int, list[int], bool]] = []
        for step in range(1, max_new_tokens + 1):
            logits = self.forward()
            # Minus infinity is how some models forbid a token; NaN and plus infinity are not.
            broken = (~(logits < torch.inf).all(dim=-1)).tolist()
            chosen = self._choose(logits)
            for row, token, bad in zip(rows, chosen.tolist(), broken, strict=True):
                if not bad:
                    tokens[row].append(token)
                    if on_tokens is not None:
                        on_tokens(row, tokens[row])
            look = settled is not None and step % LOOK_EVERY == 0
            over = [
                bad
                or tokens[row][-1] in self._ends
                or step == max_new_tokens
                or (look and settled is not None and settled(self._words(tokens[row])))
                for row, bad in zip(rows, broken, strict=True)
            ]
            ended = zip(rows, over, broken, strict=True)
            finished += [(row, tokens[row], bad) for row, done, bad in ended if done]
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

    def forward(self) -> Tensor:
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

    def cached(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer so far, ``[rows, heads, tokens, size]``."""
        layers: list[Any] = self._cache.layers
        return [(layer.keys, layer.values) for layer in layers]

    def _choose(self, logits: Tensor) -> Tensor:
        if self._generator is None:
            return logits.argmax(dim=-1)
        # A row whose logits broke ends here; its draw only has to be one.
        logits = torch.where(logits < torch.inf, logits, 0.0)
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
        if self._plans is not None:
            self._plans.keep(places)
