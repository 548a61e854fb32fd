"""One neuron looked at closely: token by token, through the unembedding, beside others.

Which tokens count towards a neuron's strongest ones is a rule, since a few tokens have
huge activations whatever they say. Counted are the tokens of the user's message, except

- the sequence's first token, which attention rests on (Xiao et al. 2023), with or without
  a BOS token;
- a token whose residual stream after any layer is more than :data:`SINK` times as long as
  the median of its prompt's: such massive activations mark attention sinks elsewhere
  (Sun et al. 2024).

So special tokens, BOS among them, and the template's are never counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from toolkit.capture.base import Batch, Position, batches, render
from toolkit.capture.sites import residual_stream
from toolkit.capture.weights import output_columns
from toolkit.errors import SafeNeuronError
from toolkit.models.load import LoadedModel

SINK = 10.0
RULE = (
    "counted are the tokens of the message, without the sequence's first and without attention "
    f"sinks (residual stream over {SINK:g} times the prompt's median length after some layer)"
)


@dataclass(frozen=True)
class Trace:
    """One neuron on one prompt.

    Args:
        ids: the rendered prompt's tokens, ``[tokens]``.
        activations: of the neuron at each, ``[tokens]``.
        own: which tokens are of the user's message, ``[tokens]``.
        counted: which of them count, ``[tokens]``.
        sinks: which tokens are attention sinks, ``[tokens]``.
    """

    ids: list[int]
    activations: npt.NDArray[np.float64]
    own: npt.NDArray[np.bool_]
    counted: npt.NDArray[np.bool_]
    sinks: npt.NDArray[np.bool_]

    def at(self, position: Position) -> float:
        """The neuron at a token position, as captures pool it."""
        if position == "last":
            return float(self.activations[-1])
        values = self.activations[self.own]
        return float(values.mean() if position == "mean" else values.max())


def trace_neuron(
    loaded: LoadedModel,
    texts: Sequence[str],
    layer: int,
    neuron: int,
    batch_size: int = 16,
    on_prompts: Callable[[int], None] | None = None,
) -> list[Trace]:
    """One neuron on every token of every prompt, in the order of the prompts.

    Raises:
        SafeNeuronError: activations that are not finite.
    """
    rendered = [render(loaded.tokenizer, text) for text in texts]
    found: dict[int, Trace] = {}
    down = loaded.layout.down(loaded.model, layer)
    for whole in batches(rendered, batch_size, loaded.tokenizer.pad_token_id):
        batch = whole.to(loaded.device)
        seen: list[Tensor] = []

        def hook(
            _: nn.Module,
            inputs: tuple[Any, ...],
            batch: Batch = batch,
            seen: list[Tensor] = seen,
        ) -> None:
            seen.append(inputs[0].reshape(*batch.ids.shape, -1)[..., neuron].double().cpu())

        handle = down.register_forward_pre_hook(hook)
        try:
            sinks = _sinks(loaded, batch)
        finally:
            handle.remove()
        for place, row in enumerate(batch.rows):
            length = len(rendered[row].ids)
            values = seen[0][place, :length].numpy()
            if not np.isfinite(values).all():
                raise SafeNeuronError(
                    f"activations of layer {layer} are not finite; load the model in float32"
                )
            own, sink = np.array(rendered[row].own), sinks[place, :length]
            counted = own & ~sink
            counted[0] = False
            found[row] = Trace(rendered[row].ids, values, own, counted, sink)
        if on_prompts is not None:
            on_prompts(len(batch.rows))
    return [found[row] for row in range(len(texts))]


def _sinks(loaded: LoadedModel, batch: Batch) -> npt.NDArray[np.bool_]:
    """Tokens whose residual stream is massive after some layer, ``[batch, tokens]``."""
    real = batch.attention.bool()
    massive = torch.zeros_like(real)

    def sink(_: int, values: Tensor) -> None:
        lengths = values.float().norm(dim=-1)
        median = lengths.masked_fill(~real, torch.nan).nanmedian(dim=1, keepdim=True).values
        massive.logical_or_((lengths > SINK * median) & real)

    residual_stream(loaded, batch, sink)
    flags: npt.NDArray[np.bool_] = massive.cpu().numpy()
    return flags


def unembedded(loaded: LoadedModel, layer: int, neuron: int) -> npt.NDArray[np.float64]:
    """What a neuron at 1 adds to each token's logit, ``[vocabulary]``.

    Its output column through the unembedding alone (Geva et al. 2022): the final
    normalisation and later layers are left out, so only the order is to be trusted.

    Raises:
        SafeNeuronError: the model has no unembedding of the residual stream's size.
    """
    column = output_columns(loaded, layer)[neuron].double()
    head = loaded.model.get_output_embeddings()
    weight = None if head is None else head.weight.detach()
    if weight is None or weight.shape[1] != len(column):
        raise SafeNeuronError(
            f"{loaded.layout.architecture} has no unembedding that reads the residual stream, so "
            "a neuron's tokens can't be told"
        )
    logits: npt.NDArray[np.float64] = (weight.double() @ column).cpu().numpy()
    return logits


def nearest(
    loaded: LoadedModel, layer: int, neuron: int, count: int
) -> list[tuple[int, int, float]]:
    """The neurons of the whole model that write most nearly the same.

    Returns:
        Layer, neuron and cosine of the output columns, nearest first, without itself.
    """
    column = output_columns(loaded, layer)[neuron].double()
    found: list[tuple[int, int, float]] = []
    for other, width in enumerate(loaded.layout.widths):
        if not width:
            continue
        columns = output_columns(loaded, other).double()
        lengths = (columns.norm(dim=1) * column.norm()).clamp(min=torch.finfo(torch.double).tiny)
        cosines = columns @ column / lengths
        if other == layer:
            cosines[neuron] = -torch.inf
        best = cosines.topk(min(count, width))
        found += [(other, int(i), float(c)) for i, c in zip(best.indices, best.values, strict=True)]
    found.sort(key=lambda one: (-one[2], one[0], one[1]))
    return [one for one in found if one[2] > -2][:count]
