"""The residual stream's mean at the last tokens of prompts, after every layer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from toolkit.capture.base import batches, render
from toolkit.capture.sites import residual_stream
from toolkit.models.load import LoadedModel


def mean_residual(
    loaded: LoadedModel,
    texts: Sequence[str],
    tail: int,
    batch_size: int = 16,
    on_prompts: Callable[[int], None] | None = None,
) -> dict[int, Tensor]:
    """Mean residual stream at the last ``tail`` tokens, ``[tail, hidden]`` for each layer."""
    sums: dict[int, Tensor] = {}
    rendered = [render(loaded.tokenizer, text) for text in texts]
    for whole in batches(rendered, batch_size, loaded.tokenizer.pad_token_id):
        batch = whole.to(loaded.device)
        ends = batch.attention.sum(dim=1, keepdim=True)
        places = ends - torch.arange(tail, 0, -1, device=ends.device)

        def sink(layer: int, values: Tensor, places: Tensor = places) -> None:
            rows = torch.arange(len(places), device=places.device)[:, None]
            part = values[rows, places].double().sum(dim=0)
            sums[layer] = sums[layer] + part if layer in sums else part.clone()

        residual_stream(loaded, batch, sink)
        if on_prompts is not None:
            on_prompts(len(batch.rows))
    return {layer: value / len(texts) for layer, value in sums.items()}
