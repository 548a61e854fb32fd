"""The capture site through TransformerLens' bridge (``transformer_lens`` 4).

The input of the down projection is the hook point ``blocks.{layer}.mlp.out.hook_in``.
"""

from typing import Any

import torch
from torch import Tensor

from toolkit.capture.base import Batch, LayerSink
from toolkit.errors import SafeNeuronError
from toolkit.models.load import LoadedModel, load_tokenizer, load_weights

# What the bridge raises, at construction, about a model that it does not know.
BRIDGE_ERRORS = (ValueError, KeyError, AttributeError, TypeError, RuntimeError, AssertionError)


class TransformerLensBackend:
    """Forward hooks of a ``TransformerBridge`` over a fresh instance of the model.

    The bridge rewires its model in place and switches it to eager attention, so it gets
    weights and a tokenizer of its own. Weights are not processed (no folding of norms):
    that would change the numbers. Each layer's activations are handed over while the
    model runs, none are kept.

    Args:
        loaded: the model; its folder is loaded once more, in the same dtype.

    Raises:
        SafeNeuronError: TransformerLens does not support the architecture.
    """

    name = "transformerlens"

    def __init__(self, loaded: LoadedModel) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        path = loaded.folder.path
        model: Any = load_weights(path, loaded.model.dtype)
        model.to(loaded.device).eval()
        try:
            self._bridge: Any = TransformerBridge.boot_transformers(
                str(path),
                hf_model=model,
                tokenizer=load_tokenizer(path),
                device=str(loaded.device),
                dtype=loaded.model.dtype,
            )
        except BRIDGE_ERRORS as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SafeNeuronError(
                f"TransformerLens does not support {loaded.layout.architecture} ({reason}); "
                "use --backend torch"
            ) from error
        self._points = [f"blocks.{i}.mlp.out.hook_in" for i in range(len(loaded.layout.sites))]
        missing = [point for point in self._points if point not in self._bridge.hook_dict]
        if missing:
            raise SafeNeuronError(
                f"TransformerLens has no hook point {missing[0]} for "
                f"{loaded.layout.architecture}; use --backend torch"
            )

    def run(self, batch: Batch, sink: LayerSink) -> None:
        """Run ``batch`` and hand each layer's activations to ``sink``."""
        from transformer_lens.model_bridge.exceptions import StopAtLayerException

        final = len(self._points) - 1
        hooks = []
        for layer, point in enumerate(self._points):

            def hook(activations: Tensor, hook: Any, layer: int = layer) -> None:
                # OPT flattens batch and tokens into one dimension; the rest keep both.
                sink(layer, activations.reshape(*batch.ids.shape, -1))
                if layer == final:
                    # The bridge's own way to end a pass early. What is left is the
                    # unembedding, a fifth of a small model's work.
                    raise StopAtLayerException(activations)

            hooks.append((point, hook))
        with torch.inference_mode(), self._bridge.hooks(fwd_hooks=hooks):
            self._bridge(
                batch.ids, attention_mask=batch.attention, return_type=None, use_cache=False
            )
