"""One vector a prompt, kept: what rank tests, intervals and single neurons' pages need.

:func:`toolkit.capture.base.capture_moments` streams and is what identifying needs; here
memory grows with the prompts: 4 bytes a prompt and neuron.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from toolkit.capture.base import CaptureBackend, Pooling, batches, pooled_activations, render
from toolkit.models.load import LoadedModel

LayerActivations = list[npt.NDArray[np.float32]]
"""One ``[prompts, width]`` for each layer, in the order of the prompts."""


def capture_activations(
    loaded: LoadedModel,
    backend: CaptureBackend,
    texts: Sequence[str],
    pooling: Pooling,
    batch_size: int = 16,
    on_prompts: Callable[[int], None] | None = None,
) -> LayerActivations:
    """Every neuron on every prompt of a set.

    Args:
        loaded: the model, for its tokenizer and layout.
        backend: runs it.
        texts: the prompts.
        pooling: how tokens become one vector: a token position, or ``norm`` for the
            2-norm over the message's own tokens.
        batch_size: prompts at a time; the result does not depend on it beyond rounding.
        on_prompts: hears how many prompts each batch finished.

    Returns:
        Float32, which holds the activations of all supported types exactly.

    Raises:
        SafeNeuronError: a prompt that can't be rendered, a wrong width from the backend,
            or activations that are not finite.
    """
    widths = loaded.layout.widths
    layers = [np.empty((len(texts), width), dtype=np.float32) for width in widths]
    cuts = np.cumsum(widths)[:-1]
    rendered = [render(loaded.tokenizer, text) for text in texts]
    for batch in batches(rendered, batch_size, loaded.tokenizer.pad_token_id):
        values = pooled_activations(backend, batch.to(loaded.device), pooling, widths)
        for layer, part in zip(layers, np.split(values, cuts, axis=1), strict=True):
            layer[batch.rows] = part
        if on_prompts is not None:
            on_prompts(len(batch.rows))
    return layers
