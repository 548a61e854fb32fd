"""What a neuron's weights tell: output columns, and importances gathered from weights.

Wei et al. (2402.05162) score single weights. A neuron owns row j of gate and up and column
j of down; its importance in a matrix is the sum over the weights that it owns there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from toolkit.capture.answers import answer_batches
from toolkit.capture.base import Batch
from toolkit.capture.gradients import frozen
from toolkit.forced import Forced
from toolkit.models.layout import LayerSite, WeightSlice
from toolkit.models.load import LoadedModel

LARGEST_BATCH = 8  # rows whose graph is held at once
Importances = list[npt.NDArray[np.float64]]
"""``[matrices, width]`` for each layer: down first, then gate and up, or the one there is."""


def output_columns(loaded: LoadedModel, layer: int) -> Tensor:
    """What each neuron of a layer writes: its column of down, as rows ``[width, hidden]``."""
    piece = loaded.layout.sites[layer].slices[0]
    weight: Tensor = loaded.model.get_parameter(piece.parameter).detach()
    return weight if piece.dim == 0 else weight.T


def column_norms(loaded: LoadedModel) -> list[npt.NDArray[np.float64]]:
    """2-norm of each output column, ``[width]`` a layer."""
    layers = range(len(loaded.layout.sites))
    return [output_columns(loaded, layer).double().norm(dim=1).cpu().numpy() for layer in layers]


def project_columns(loaded: LoadedModel, direction: Tensor) -> list[npt.NDArray[np.float64]]:
    """Dot product of each output column with a unit direction, ``[width]`` a layer.

    Args:
        loaded: the model.
        direction: ``[hidden]``, of any length but zero.
    """
    unit = direction.double().to(loaded.device)
    unit = unit / unit.norm()
    layers = range(len(loaded.layout.sites))
    return [(output_columns(loaded, layer).double() @ unit).cpu().numpy() for layer in layers]


def wanda(
    loaded: LoadedModel,
    rows: Sequence[Forced],
    batch_size: int = 16,
    on_rows: Callable[[int], None] | None = None,
) -> Importances:
    """Wanda's ``|W_ij| * ||X_j||`` over the answers' tokens, gathered to neurons.

    The norm of an input is its root mean square over the tokens, so that the importance
    does not grow with the number of answers.

    Args:
        loaded: the model.
        rows: prompts and answers.
        batch_size: rows at a time.
        on_rows: hears how many rows each batch finished.
    """
    squares: dict[str, Tensor] = {}
    tokens = 0
    for batch in answer_batches(loaded, rows, batch_size):
        with ExitStack() as stack:
            for name in _matrices(loaded):

                def hook(
                    _: nn.Module, inputs: tuple[Any, ...], name: str = name, batch: Batch = batch
                ) -> None:
                    own = inputs[0].reshape(*batch.ids.shape, -1)[batch.own]
                    part = own.double().square().sum(dim=0)
                    squares[name] = squares[name] + part if name in squares else part.clone()

                module = loaded.model.get_submodule(name.removesuffix(".weight"))
                stack.callback(module.register_forward_pre_hook(hook).remove)
            body: Any = loaded.body
            with torch.inference_mode():
                body(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
        tokens += int(batch.own.sum())
        if on_rows is not None:
            on_rows(len(batch.rows))

    def weigh(piece: WeightSlice, place: int) -> Tensor:
        weight = loaded.model.get_parameter(piece.parameter).detach().double().abs()
        rms = (squares[piece.parameter] / tokens).sqrt()
        # The down projection's inputs are the neurons; the others' outputs are.
        inputs = piece.dim if place == 0 else 1 - piece.dim
        weighed: Tensor = weight * (rms if inputs == 1 else rms[:, None])
        return weighed

    return [
        np.stack(
            [_gather(weigh(p, i), p, site.width).cpu().numpy() for i, p in enumerate(_pieces(site))]
        )
        for site in loaded.layout.sites
    ]


def snip(
    loaded: LoadedModel,
    rows: Sequence[Forced],
    batch_size: int = LARGEST_BATCH,
    on_rows: Callable[[int], None] | None = None,
) -> Importances:
    """SNIP's mean over answers of ``|W_ij * dL/dW_ij|``, gathered to neurons.

    L is an answer's mean negative log-likelihood given its prompt. The gradient is each
    answer's own, before the absolute value is taken.

    Args:
        loaded: the model.
        rows: prompts and answers.
        batch_size: rows at a time, at most :data:`LARGEST_BATCH`.
        on_rows: hears how many rows each batch finished.
    """
    pieces: dict[str, list[tuple[int, int, WeightSlice]]] = {}
    conv: dict[str, bool] = {}
    found: Importances = []
    for layer, site in enumerate(loaded.layout.sites):
        found.append(np.zeros((len(_pieces(site)), site.width)))
        for place, piece in enumerate(_pieces(site)):
            pieces.setdefault(piece.parameter, []).append((layer, place, piece))
            conv[piece.parameter] = piece.dim == (0 if place == 0 else 1)

    def weigh(name: str, inputs: Tensor, gradient: Tensor) -> None:
        weight = loaded.model.get_parameter(name).detach()
        for x, delta in zip(inputs, gradient, strict=True):
            # GPT-2's Conv1D stores its weight [in, out], the transpose of nn.Linear.
            by_weight = x.T @ delta if conv[name] else delta.T @ x
            importance = (weight * by_weight).abs().double()
            for layer, place, piece in pieces[name]:
                width = loaded.layout.sites[layer].width
                found[layer][place] += _gather(importance, piece, width).cpu().numpy()

    for batch in answer_batches(loaded, rows, min(batch_size, LARGEST_BATCH)):
        _backward(loaded, batch, list(pieces), weigh)
        if on_rows is not None:
            on_rows(len(batch.rows))
    return [layer / len(rows) for layer in found]


def _backward(
    loaded: LoadedModel,
    batch: Batch,
    names: Sequence[str],
    weigh: Callable[[str, Tensor, Tensor], None],
) -> None:
    """Hand over each matrix's inputs and the loss's gradient at its outputs, a row each."""
    shape = batch.ids.shape
    with ExitStack() as stack:
        stack.enter_context(frozen(loaded.model))
        stack.enter_context(torch.enable_grad())
        # With the weights frozen, something before them has to want a gradient.
        embedding = loaded.model.get_input_embeddings()
        stack.callback(
            embedding.register_forward_hook(lambda _, __, output: output.requires_grad_()).remove
        )
        for name in names:

            def hook(
                _: nn.Module, inputs: tuple[Any, ...], output: Tensor, name: str = name
            ) -> None:
                seen = inputs[0].detach().reshape(*shape, -1)
                output.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: weigh(name, seen, gradient.reshape(*shape, -1))
                )

            module = loaded.model.get_submodule(name.removesuffix(".weight"))
            stack.callback(module.register_forward_hook(hook).remove)
        logits = loaded.model(
            input_ids=batch.ids, attention_mask=batch.attention, use_cache=False
        ).logits
        logs = logits[:, :-1].float().log_softmax(dim=-1)
        chosen = logs.gather(2, batch.ids[:, 1:, None])[..., 0]
        answers = batch.own[:, 1:]
        losses = -(chosen * answers).sum(dim=1) / answers.sum(dim=1)
        losses.sum().backward()


def _pieces(site: LayerSite) -> list[WeightSlice]:
    """Where a layer's neurons stand in its matrices, without biases."""
    return [piece for piece in site.slices if piece.parameter.endswith(".weight")]


def _matrices(loaded: LoadedModel) -> Iterator[str]:
    """Every matrix that holds parts of neurons, once each."""
    names = [piece.parameter for site in loaded.layout.sites for piece in _pieces(site)]
    return iter(dict.fromkeys(names))


def _gather(importance: Tensor, piece: WeightSlice, width: int) -> Tensor:
    """Sum over the weights of each neuron in a matrix, ``[width]``."""
    own = importance.narrow(piece.dim, piece.offset, width)
    return own.sum(dim=1 - piece.dim)
