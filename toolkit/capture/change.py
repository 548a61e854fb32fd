"""How far each neuron differs between two models on the same answers (Chen et al. 2024)."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from toolkit.capture.answers import answer_batches
from toolkit.capture.base import Batch
from toolkit.capture.hooks import HooksBackend
from toolkit.errors import SafeNeuronError
from toolkit.forced import Forced
from toolkit.models.load import LoadedModel


def require_comparable(first: LoadedModel, second: LoadedModel) -> None:
    """Check that two models have the same neurons and read the same tokens.

    Raises:
        SafeNeuronError: their shapes or their vocabularies differ.
    """
    a, b = first.folder.source, second.folder.source
    if first.layout.widths != second.layout.widths:
        raise SafeNeuronError(
            f"{a} and {b} have different shapes, so their neurons can't be compared; give a model "
            "and what it was trained from"
        )
    if first.tokenizer.get_vocab() != second.tokenizer.get_vocab():
        raise SafeNeuronError(
            f"{a} and {b} have different vocabularies; give a model and what it was trained from"
        )


def rms_change(
    first: LoadedModel,
    second: LoadedModel,
    rows: Sequence[Forced],
    batch_size: int = 16,
    on_rows: Callable[[int], None] | None = None,
) -> list[npt.NDArray[np.float64]]:
    """Root mean square difference over the answers' tokens, ``[width]`` a layer.

    Chen et al.'s change score (2406.14144): the activations of both models on the first
    one's prompt and answer, at each token of the answer.

    Args:
        first: the model that gave the answers.
        second: the one it is compared with, of the same shape.
        rows: prompts and answers.
        batch_size: rows at a time.
        on_rows: hears how many rows each batch finished.

    Raises:
        SafeNeuronError: the models can't be compared.
    """
    require_comparable(first, second)
    backends = HooksBackend(first), HooksBackend(second)
    squares = [np.zeros(width) for width in first.layout.widths]
    tokens = 0
    for batch in answer_batches(first, rows, batch_size):
        kept: dict[int, Tensor] = {}

        def keep(
            layer: int, values: Tensor, batch: Batch = batch, kept: dict[int, Tensor] = kept
        ) -> None:
            kept[layer] = values[batch.own].double()

        def compare(
            layer: int, values: Tensor, batch: Batch = batch, kept: dict[int, Tensor] = kept
        ) -> None:
            apart = kept.pop(layer) - values[batch.own].double().to(first.device)
            squares[layer] += apart.square().sum(dim=0).cpu().numpy()

        backends[0].run(batch, keep)
        backends[1].run(batch.to(second.device), compare)
        tokens += int(batch.own.sum())
        if on_rows is not None:
            on_rows(len(batch.rows))
    return [np.sqrt(part / tokens) for part in squares]
