"""A model's own answers, as the tokens that weights and changes are judged on."""

from collections.abc import Callable, Iterator, Sequence

from toolkit.capture.base import Batch, Rendered, batches
from toolkit.errors import SafeNeuronError
from toolkit.forced import Forced
from toolkit.generate import generate, prompt_ids
from toolkit.models.load import LoadedModel


def own_answers(
    loaded: LoadedModel,
    texts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 16,
    instead: Callable[[int, str], str] | None = None,
    on_prompts: Callable[[int], None] | None = None,
) -> list[Forced]:
    """Prompts with the model's greedy answers to them, in their order.

    Args:
        loaded: the model.
        texts: the prompts.
        max_new_tokens: an answer is cut there, in tokens.
        batch_size: prompts at a time.
        instead: given a prompt's place and its answer, the answer to use.
        on_prompts: hears how many prompts were answered.

    Raises:
        SafeNeuronError: the model answers nothing.
    """
    answers = generate(loaded, texts, max_new_tokens, batch_size, on_prompts)
    if instead is not None:
        answers = [instead(place, answer) for place, answer in enumerate(answers)]
    rows = []
    for text, answer in zip(texts, answers, strict=True):
        # Token by token a text may be longer than it was when it was generated.
        ids = loaded.tokenizer(answer, add_special_tokens=False)["input_ids"][:max_new_tokens]
        if ids:
            rows.append(Forced(prompt_ids(loaded, text), list(ids)))
    if not rows:
        raise SafeNeuronError(
            f"{loaded.folder.source} answers none of the {len(texts)} prompts with a word; give "
            "others, or a model that answers"
        )
    return rows


def answer_batches(loaded: LoadedModel, rows: Sequence[Forced], size: int) -> Iterator[Batch]:
    """Prompts and answers in batches, whose own tokens are those of the answers."""
    rendered = [
        Rendered(row.prompt + row.answer, [False] * len(row.prompt) + [True] * len(row.answer))
        for row in rows
    ]
    for batch in batches(rendered, size, loaded.tokenizer.pad_token_id):
        yield batch.to(loaded.device)
