"""Plain forward hooks: the reference that the other backends are held against."""

from typing import Any

import torch
from torch import Tensor, nn

from toolkit.capture.base import Batch, LayerSink
from toolkit.models.load import LoadedModel


class HooksBackend:
    """Forward pre-hooks on every down projection, over the body without the unembedding."""

    name = "torch"

    def __init__(self, loaded: LoadedModel) -> None:
        self._body: Any = loaded.body
        self._downs = [loaded.layout.down(loaded.model, i) for i in range(len(loaded.layout.sites))]

    def run(self, batch: Batch, sink: LayerSink) -> None:
        """Run ``batch`` and hand each layer's activations to ``sink``."""
        handles = []
        try:
            for layer, down in enumerate(self._downs):

                def hook(_: nn.Module, inputs: tuple[Tensor, ...], layer: int = layer) -> None:
                    # OPT flattens batch and tokens into one dimension; the rest keep both.
                    sink(layer, inputs[0].reshape(*batch.ids.shape, -1))

                handles.append(down.register_forward_pre_hook(hook))
            with torch.inference_mode():
                self._body(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
