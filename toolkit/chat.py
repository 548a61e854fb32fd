"""A conversation answered word by word, each row of the batch under a plan of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from toolkit.errors import SafeNeuronError
from toolkit.generate import Reply, answer_batch
from toolkit.models.load import LoadedModel, context_length
from toolkit.rows import Plan, RowPlans

OnText = Callable[[int, str], None]
"""Hears of a row, by its place, the words that its answer has grown by."""

# A letter whose bytes are not all there yet is decoded to this.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    text: str


def conversation_ids(loaded: LoadedModel, turns: Sequence[Turn]) -> list[int]:
    """Token ids of a conversation up to where the next answer begins.

    One turn alone is tokenised as :func:`toolkit.generate.prompt_ids` does. Without a chat
    template the turns stand in paragraphs.
    """
    tokenizer = loaded.tokenizer
    if not tokenizer.chat_template:
        text = "\n\n".join(turn.text for turn in turns)
        return list(tokenizer(text)["input_ids"])
    rendered = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.text} for turn in turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    # The template brings its own BOS.
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


class _Growing:
    """The words of an answer as its tokens come."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._told = tokenizer, ""

    def words(self, tokens: Sequence[int]) -> str:
        """What is new since the last call, but for a letter at its end that is not whole."""
        text = str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
        text = text.rstrip(UNFINISHED)
        if not text.startswith(self._told):
            return ""
        new, self._told = text[len(self._told) :], text
        return new


def converse(
    loaded: LoadedModel,
    conversations: Sequence[Sequence[Turn]],
    plans: Sequence[Plan],
    max_new_tokens: int,
    on_text: OnText,
    seed: int | None = None,
) -> list[Reply]:
    """Answer conversations in one batch, the first under the first plan and so on.

    Args:
        loaded: the model.
        conversations: each ends with the user's turn.
        plans: what is done to the model for each.
        max_new_tokens: an answer's greatest length, in tokens.
        on_text: hears the answers as they grow; what it raises ends them all.
        seed: draw the tokens; None answers greedily.

    Raises:
        SafeNeuronError: a conversation is too long for the model, or a plan is for a model
            of another shape.
    """
    prompts = [conversation_ids(loaded, turns) for turns in conversations]
    longest = context_length(loaded.model.config)
    needed = max(map(len, prompts)) + max_new_tokens
    if longest is not None and needed > longest:
        raise SafeNeuronError(
            f"the conversation and its answer may have {needed} tokens and the model reads "
            f"{longest}; begin a new one, or ask for fewer tokens"
        )
    growing = [_Growing(loaded.tokenizer) for _ in prompts]

    def heard(row: int, tokens: Sequence[int]) -> None:
        if new := growing[row].words(tokens):
            on_text(row, new)

    generator = None if seed is None else torch.Generator(loaded.device).manual_seed(seed)
    attached = RowPlans(loaded, plans)
    with attached.attached():
        return answer_batch(
            loaded,
            prompts,
            max_new_tokens,
            generator,
            plans=attached,
            plan_of=range(len(prompts)),
            on_tokens=heard,
        )
