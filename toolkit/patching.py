"""Dynamic activation patching (Chen et al. 2406.14144): one model answers with another's neurons.

At every step the guide reads what was written so far; its chosen neurons' activations, at
every token, take the place of the answering model's, which then gives the next token.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from toolkit.capture.change import require_comparable
from toolkit.generate import AnswerBatch, prompt_ids
from toolkit.intervene import require_shape
from toolkit.models.load import LoadedModel
from toolkit.neurons import NeuronSet


def patched_answers(
    loaded: LoadedModel,
    guide: LoadedModel,
    neurons: NeuronSet,
    texts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 32,
    on_prompts: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers of ``loaded`` while ``neurons`` are as in ``guide``, in the prompts' order.

    Args:
        loaded: the model that answers (Chen et al.: before alignment).
        guide: the one whose activations are put in (after alignment).
        neurons: which.
        texts: the prompts.
        max_new_tokens: an answer's greatest length, in tokens.
        batch_size: prompts at a time.
        on_prompts: hears how many prompts each batch finished.

    Raises:
        SafeNeuronError: the models or the set are not of one shape.
    """
    require_comparable(loaded, guide)
    require_shape(loaded.layout, neurons)
    answers = [""] * len(texts)
    ids = [prompt_ids(loaded, text) for text in texts]
    order = sorted(range(len(texts)), key=lambda row: (len(ids[row]), row))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = _Guided(loaded, guide, neurons, [ids[row] for row in rows])
        for place, tokens, _ in batch.run(max_new_tokens, None):
            answers[rows[place]] = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
        if on_prompts is not None:
            on_prompts(len(rows))
    return answers


class _Guided(AnswerBatch):
    """Rows of one model, each step with the neurons that another has on the same tokens.

    Both keep their keys and values: all tokens are patched, earlier ones as they were when
    they were read, so nothing has to be read again.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        guide: LoadedModel,
        neurons: NeuronSet,
        prompts: Sequence[list[int]],
    ) -> None:
        encoding = loaded.tokenizer.pad(
            {"input_ids": list(prompts)}, padding_side="left", return_tensors="pt"
        ).to(loaded.device)
        tokens = encoding["input_ids"], encoding["attention_mask"]
        super().__init__(loaded, *tokens, None, None, DynamicCache(config=loaded.model.config))
        self._guide = AnswerBatch(
            guide, *tokens, None, None, DynamicCache(config=guide.model.config)
        )
        self._models = loaded, guide
        self._chosen = {
            layer: torch.from_numpy(indices.copy()).to(loaded.device)
            for layer, indices in neurons.layers().items()
        }

    def forward(self) -> Tensor:
        """Logits of the next token, ``[rows, vocabulary]``, with the guide's neurons put in."""
        loaded, guide = self._models
        held: dict[int, Tensor] = {}
        self._guide._ids, self._guide._attention = self._ids, self._attention
        with ExitStack() as stack:
            for layer, chosen in self._chosen.items():

                def keep(
                    _: nn.Module,
                    inputs: tuple[Any, ...],
                    layer: int = layer,
                    chosen: Tensor = chosen,
                ) -> None:
                    held[layer] = inputs[0][..., chosen]

                down = guide.layout.down(guide.model, layer)
                stack.callback(down.register_forward_pre_hook(keep).remove)
            self._guide.forward()
        with ExitStack() as stack:
            for layer, chosen in self._chosen.items():

                def put(
                    _: nn.Module,
                    inputs: tuple[Any, ...],
                    layer: int = layer,
                    chosen: Tensor = chosen,
                ) -> tuple[Any, ...]:
                    return inputs[0].index_copy(-1, chosen, held[layer]), *inputs[1:]

                down = loaded.layout.down(loaded.model, layer)
                stack.callback(down.register_forward_pre_hook(put).remove)
            return super().forward()

    def _keep(self, places: Tensor) -> None:
        super()._keep(places)
        self._guide._keep(places)
