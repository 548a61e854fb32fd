"""What gate and up projections give, one vector a prompt: what NeuroStrike's probe reads."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from toolkit.capture.base import Batch, batches, render
from toolkit.capture.sites import projection_outputs
from toolkit.models.load import LoadedModel

Place = tuple[int, int]
"""A layer and which of its projections (0, 1: gate, up)."""


def largest_outputs(
    loaded: LoadedModel,
    texts: Sequence[str],
    batch_size: int = 16,
    on_prompts: Callable[[int], None] | None = None,
) -> dict[Place, Tensor]:
    """Largest output of each projection over the message's own tokens, ``[prompts, width]``.

    NeuroStrike takes the maximum over all positions (2509.11864); over all of them it
    would be the template's, which are the same in every prompt.

    Args:
        loaded: the model.
        texts: the prompts; rows come in their order, in float32 on the model's device.
        batch_size: prompts at a time.
        on_prompts: hears how many prompts each batch finished.
    """
    found: dict[Place, Tensor] = {}
    rendered = [render(loaded.tokenizer, text) for text in texts]
    for whole in batches(rendered, batch_size, loaded.tokenizer.pad_token_id):
        batch = whole.to(loaded.device)

        def sink(layer: int, which: int, output: Tensor, batch: Batch = batch) -> None:
            largest = output.masked_fill(~batch.own[..., None], -torch.inf).amax(dim=1)
            if (layer, which) not in found:
                shape = (len(texts), largest.shape[1])
                found[layer, which] = torch.empty(shape, device=loaded.device)
            found[layer, which][batch.rows] = largest.float()

        projection_outputs(loaded, batch, sink)
        if on_prompts is not None:
            on_prompts(len(batch.rows))
    return found
