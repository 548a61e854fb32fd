"""Gradients of a refusal at every neuron, at the tokens from which the answer begins."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.capture.base import Batch, batches, render
from toolkit.capture.token_means import TokenMeans
from toolkit.models.load import LoadedModel
from toolkit.refusal_odds import refusal_score, refusal_tokens

# The graph of a batch is kept until its gradients are there: small batches.
LARGEST_BATCH = 16


def tokens_after(loaded: LoadedModel, text: str) -> int:
    """How many tokens the template puts after the message; at least one."""
    own = render(loaded.tokenizer, text).own
    last = max(place for place, mine in enumerate(own) if mine)
    return max(1, len(own) - last - 1)


def token_means(
    loaded: LoadedModel,
    texts: Sequence[str],
    tail: int,
    batch_size: int = LARGEST_BATCH,
    on_prompts: Callable[[int], None] | None = None,
) -> list[TokenMeans]:
    """Mean gradient and activation of every neuron at the last ``tail`` tokens of prompts."""
    tokens = refusal_tokens(loaded)
    widths = loaded.layout.widths
    gradients = [np.zeros((tail, width)) for width in widths]
    activations = [np.zeros((tail, width)) for width in widths]
    rendered = [render(loaded.tokenizer, text) for text in texts]
    size = min(LARGEST_BATCH, batch_size)
    for whole in batches(rendered, size, loaded.tokenizer.pad_token_id):
        batch = whole.to(loaded.device)
        with frozen(loaded.model), _leaves(loaded, batch, tail) as (leaves, seen):
            last = batch.attention.sum(dim=1) - 1
            logits = loaded.model(
                input_ids=batch.ids, attention_mask=batch.attention, use_cache=False
            ).logits[torch.arange(len(last)), last]
            torch.autograd.backward((-refusal_score(logits, tokens)).sum())
        for layer, leaf in leaves.items():
            assert leaf.grad is not None
            gradients[layer] += leaf.grad.double().sum(dim=0).cpu().numpy()
            activations[layer] += seen[layer].double().sum(dim=0).cpu().numpy()
        if on_prompts is not None:
            on_prompts(len(batch.rows))
    pairs = zip(gradients, activations, strict=True)
    return [TokenMeans(g / len(texts), a / len(texts)) for g, a in pairs]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradients of the weights, which would cost as much again as those asked for."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_()


@contextmanager
def _leaves(
    loaded: LoadedModel, batch: Batch, tail: int
) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """Add a zero to every neuron at the last tokens: its gradient is the neuron's."""
    ends = batch.attention.sum(dim=1, keepdim=True)
    back = torch.arange(tail, 0, -1, device=ends.device)
    places, rows = ends - back, torch.arange(len(ends), device=ends.device)[:, None]
    leaves: dict[int, Tensor] = {}
    seen: dict[int, Tensor] = {}
    handles = []
    try:
        for layer, width in enumerate(loaded.layout.widths):
            if not width:
                continue

            def hook(_: nn.Module, inputs: tuple[Any, ...], layer: int = layer) -> Any:
                shaped = inputs[0].reshape(*batch.ids.shape, -1)
                seen[layer] = shaped[rows, places].detach()
                leaves[layer] = torch.zeros_like(seen[layer]).requires_grad_()
                moved = shaped.index_put((rows, places), leaves[layer], accumulate=True)
                return moved.reshape(inputs[0].shape), *inputs[1:]

            down = loaded.layout.down(loaded.model, layer)
            handles.append(down.register_forward_pre_hook(hook))
        with torch.enable_grad():
            yield leaves, seen
    finally:
        for handle in handles:
            handle.remove()
