"""The capture site through nnsight's tracing (``nnsight`` 0.8).

nnsight compiles the body of a ``with trace`` block from its source text, so that block
must stand in a module that can be imported, over several lines.
"""

from typing import Any

import torch

from toolkit.capture.base import Batch, LayerSink
from toolkit.models.layout import layout_of
from toolkit.models.load import LoadedModel, load_weights


class NnsightBackend:
    """A trace over the body of a fresh instance of the model.

    ``nnsight.NNsight`` wraps the bare body: ids and attention mask go in as they are, with
    none of ``TransformersModel``'s tokenising and left padding, and no logits are made.
    Inside a trace the values are real tensors, each there when its layer has run; so each
    is handed over at once and none are kept.

    Args:
        loaded: the model; its folder is loaded once more, in the same dtype, since
            nnsight puts a controller on every module that it wraps.
    """

    name = "nnsight"

    def __init__(self, loaded: LoadedModel) -> None:
        from nnsight import NNsight

        model: Any = load_weights(loaded.folder.path, loaded.model.dtype)
        model.to(loaded.device).eval()
        layout = layout_of(model)
        body = model.base_model
        names = {id(module): name for name, module in body.named_modules()}
        self._traced: Any = NNsight(body)
        self._sites = [
            self._traced.get(names[id(layout.down(model, layer))])
            for layer in range(len(layout.sites))
        ]

    def run(self, batch: Batch, sink: LayerSink) -> None:
        """Run ``batch`` and hand each layer's activations to ``sink``."""
        sites = self._sites
        shape = batch.ids.shape
        inputs = {"input_ids": batch.ids, "attention_mask": batch.attention, "use_cache": False}
        # Two statements: a trace can't share its line with another context.
        with torch.inference_mode():  # noqa: SIM117
            with self._traced.trace(**inputs):
                for layer, site in enumerate(sites):
                    sink(layer, site.input.reshape(*shape, -1))
