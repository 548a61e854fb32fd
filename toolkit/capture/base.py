"""Prompts into batches, activations into one vector a prompt: what all backends share.

A backend does one thing: run token ids through the model and hand over, layer by layer,
the input of the down projection. Everything else, tokenising above all, happens here, so
that the three backends see the same numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from toolkit.capture.moments import Moments
from toolkit.errors import SafeNeuronError
from toolkit.models.load import LoadedModel

Position = Literal["last", "mean", "max"]
"""How a prompt's tokens become one vector.

``last``: the last token of the rendered prompt, from which the answer's first token is
predicted. ``mean`` and ``max``: over the tokens of the user's message alone, without
padding, BOS and the template's tokens. The paper does not say which it uses, and models
differ in which finds neurons whose removal counts (README): try all three.
"""
POSITIONS: tuple[Position, ...] = get_args(Position)

Pooling = Position | Literal["norm"]
"""A token position, or ``norm``: the 2-norm over the tokens of the user's message."""

_MARK = "\u2603 the message \u2603"

LayerSink = Callable[[int, Tensor], None]
"""Takes a layer and its activations ``[batch, tokens, width]``, which it must not keep."""


class CaptureBackend(Protocol):
    """Runs one batch and hands over the neurons' activations."""

    name: str

    def run(self, batch: "Batch", sink: LayerSink) -> None:
        """Run ``batch`` and call ``sink`` once for each layer."""
        ...


@dataclass(frozen=True)
class Rendered:
    """One prompt as the model sees it.

    Args:
        ids: token ids of the rendered chat, ending where the answer begins.
        own: for each token, whether it is part of the user's message.
    """

    ids: list[int]
    own: list[bool]


@dataclass(frozen=True)
class Batch:
    """Rendered prompts, padded on the right.

    Args:
        ids, attention: ``[batch, tokens]``.
        own: ``[batch, tokens]``, true on the tokens of the user's messages.
        rows: which prompts these are.
    """

    ids: Tensor
    attention: Tensor
    own: Tensor
    rows: list[int]

    @cached_property
    def spans(self) -> list[slice | Tensor]:
        """For each row its own tokens: a slice where they are in one piece, else indices."""
        found: list[slice | Tensor] = []
        for own in self.own.cpu():
            tokens = own.nonzero()[:, 0]
            first, last = int(tokens[0]), int(tokens[-1])
            whole = last - first + 1 == len(tokens)
            found.append(slice(first, last + 1) if whole else tokens.to(self.own.device))
        return found

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(self.ids.to(device), self.attention.to(device), self.own.to(device), self.rows)


def render_text(tokenizer: Any, text: str) -> str:
    """The prompt with the chat template applied, ending where the answer begins.

    A tokenizer without a template gives the text as it is.
    """
    if not tokenizer.chat_template:
        return text
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(rendered, str)
    return rendered


def render(tokenizer: Any, text: str) -> Rendered:
    """Tokenise one prompt, and mark which tokens are the user's own.

    Raises:
        SafeNeuronError: the template changes the message so that it can't be found, or
            nothing of it is left.
    """
    templated = bool(tokenizer.chat_template)
    rendered = render_text(tokenizer, text)
    # A template brings its own BOS; without one the tokenizer adds what the model expects.
    encoding = tokenizer(rendered, add_special_tokens=not templated, return_offsets_mapping=True)
    ids = list(encoding["input_ids"])
    start, end = _find_message(tokenizer, text, rendered)
    special = set(tokenizer.all_special_ids)
    own = [
        low < end and high > start and low < high and token not in special
        for token, (low, high) in zip(ids, encoding["offset_mapping"], strict=True)
    ]
    if not any(own):
        raise SafeNeuronError(f"the prompt {text[:40]!r} has no tokens of its own")
    return Rendered(ids, own)


def _find_message(tokenizer: Any, text: str, rendered: str) -> tuple[int, int]:
    """Where the user's message stands in the rendered chat: first character and end."""
    # Searching for the message alone would find "user" in the template's own words; so see
    # where a text that no template has ends up. Some templates strip the message.
    start = render_text(tokenizer, _MARK).find(_MARK)
    for message in (text, text.strip()):
        if start >= 0 and message and rendered.startswith(message, start):
            return start, start + len(message)
    raise SafeNeuronError(
        f"the chat template rewrites the prompt {text[:40]!r}, so its own tokens can't be told"
    )


def batches(rendered: Sequence[Rendered], batch_size: int, pad_id: int) -> Iterator[Batch]:
    """Sort by length, cut into batches and pad on the right.

    Right padding keeps every token at its own position, and causal attention keeps the
    padding from reaching it; so no backend has to know about padding.
    """
    order = sorted(range(len(rendered)), key=lambda row: (len(rendered[row].ids), row))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(rendered[row].ids) for row in rows)
        ids = torch.full((len(rows), width), pad_id)
        attention = torch.zeros((len(rows), width), dtype=torch.long)
        own = torch.zeros((len(rows), width), dtype=torch.bool)
        for place, row in enumerate(rows):
            length = len(rendered[row].ids)
            ids[place, :length] = torch.tensor(rendered[row].ids)
            attention[place, :length] = 1
            own[place, :length] = torch.tensor(rendered[row].own)
        yield Batch(ids, attention, own, rows)


def pool(activations: Tensor, batch: Batch, position: Pooling) -> Tensor:
    """One vector a prompt: ``[batch, tokens, width]`` to ``[batch, width]``."""
    if position == "last":
        last = batch.attention.sum(dim=1) - 1
        return activations[torch.arange(len(last), device=last.device), last]
    if position == "norm":
        own = batch.own.float()  # squares overflow in half precision
        return torch.bmm(own[:, None], activations.float().square())[:, 0].sqrt()
    if position == "mean":
        # A batched product reads the activations once and makes no masked copy.
        weights = batch.own.to(activations.dtype)
        summed = torch.bmm(weights[:, None], activations)[:, 0]
        return summed / weights.sum(dim=1, keepdim=True)
    # A slice is a view: only the maxima are written.
    rows = zip(activations, batch.spans, strict=True)
    return torch.stack([row[span].amax(dim=0) for row, span in rows])


def pooled_activations(
    backend: CaptureBackend, batch: Batch, position: Pooling, widths: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Run one batch: ``[batch, neurons]``, the layers one after the other.

    Each layer is pooled as it comes, while its activations are there; the small pooled
    vectors leave the device together.

    Args:
        backend: runs the model.
        batch: on the model's device.
        position: how tokens become one vector.
        widths: neurons in each layer.

    Raises:
        SafeNeuronError: a layer of another width, missing or given twice, or activations
            that are not finite.
    """
    pooled: dict[int, Tensor] = {}

    def sink(layer: int, activations: Tensor) -> None:
        if layer in pooled or activations.shape != (*batch.ids.shape, widths[layer]):
            raise SafeNeuronError(
                f"backend {backend.name}: layer {layer} gave {tuple(activations.shape)}, "
                f"expected {(*batch.ids.shape, widths[layer])} once; run 'safeneuron doctor'"
            )
        pooled[layer] = pool(activations, batch, position)

    backend.run(batch, sink)
    if len(pooled) != len(widths):
        raise SafeNeuronError(
            f"backend {backend.name} gave {len(pooled)} of {len(widths)} layers; "
            "run 'safeneuron doctor'"
        )
    values = torch.cat([pooled[layer] for layer in range(len(widths))], dim=1)
    flat: npt.NDArray[np.float64] = values.double().cpu().numpy()
    if not np.isfinite(flat).all():
        neuron = int(np.flatnonzero(~np.isfinite(flat).all(axis=0))[0])
        layer = int(np.searchsorted(np.cumsum(widths), neuron, side="right"))
        raise SafeNeuronError(
            f"activations of layer {layer} are not finite; load the model in float32"
        )
    return flat


def capture_moments(
    loaded: LoadedModel,
    backend: CaptureBackend,
    texts: Sequence[str],
    position: Position,
    batch_size: int = 16,
    on_prompts: Callable[[int], None] | None = None,
) -> list[Moments]:
    """Moments of every neuron over a prompt set.

    Memory does not grow with the number of prompts: each layer is pooled as it runs, and
    each batch is folded into the moments and let go.

    Args:
        loaded: the model, for its tokenizer and layout.
        backend: runs it.
        texts: the prompts.
        position: how tokens become one vector.
        batch_size: prompts at a time; the result does not depend on it beyond rounding.
        on_prompts: hears how many prompts each batch finished.

    Returns:
        One :class:`Moments` for each layer.

    Raises:
        SafeNeuronError: fewer than two prompts, a prompt that can't be rendered, a wrong
            width from the backend, or activations that are not finite.
    """
    if len(texts) < 2:
        raise SafeNeuronError(
            f"{len(texts)} prompt is too few for a variance; give at least two on each side"
        )
    widths = loaded.layout.widths
    moments = Moments.zero(sum(widths))
    rendered = [render(loaded.tokenizer, text) for text in texts]
    for batch in batches(rendered, batch_size, loaded.tokenizer.pad_token_id):
        values = pooled_activations(backend, batch.to(loaded.device), position, widths)
        moments = moments.merge(Moments.of(values))
        if on_prompts is not None:
            on_prompts(len(batch.rows))
    return moments.split(widths)
