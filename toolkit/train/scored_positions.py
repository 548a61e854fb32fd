"""Forward passes that project onto the vocabulary only where a loss reads.

TRL's fused head leaves the other positions out where Triton runs, and elsewhere projects all of
them: on a CPU that was two fifths of a small model's step, most of it for nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from toolkit.examples import IGNORED

PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@contextmanager
def scored_alone(backbone: nn.Module, scored: Tensor) -> Iterator[None]:
    """Within the block the backbone's last hidden states are ``[1, scored positions, size]``.

    Args:
        backbone: what a head projects the last hidden states of.
        scored: ``[rows, tokens - 1]``, true where the next token counts.
    """

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        states = output.last_hidden_state[:, :-1]
        output.last_hidden_state = states[scored.to(states.device)][None]
        return output

    hook = backbone.register_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()


class ScoredPositions:
    """Stands in for a model with TRL's fused head wherever a trainer calls it.

    Args:
        model: what the trainer calls, wrapped or not.
        backbone: the module inside it whose last hidden states are projected.
    """

    def __init__(self, model: Any, backbone: nn.Module) -> None:
        self._model, self._backbone = model, backbone

    def __call__(self, **inputs: Any) -> Any:
        """The model's own outputs, with per-token fields ``[rows, tokens - 1]``.

        Args:
            inputs: of the model. With ``fused_lm_head`` and ``labels`` (``[rows, tokens]``)
                only the labels' positions are projected; other calls are passed on.
        """
        if not inputs.get("fused_lm_head") or inputs.get("labels") is None:
            return self._model(**inputs)
        labels: Tensor = inputs.pop("labels")[:, 1:]
        scored = labels != IGNORED
        with scored_alone(self._backbone, scored):
            outputs = self._model(shift_labels=labels[scored][None], **inputs)
        for name in PER_TOKEN:
            found: Tensor | None = outputs.get(name)
            if found is not None:
                outputs[name] = found.new_zeros(scored.shape).masked_scatter(scored, found[0])
        outputs.label_mask = scored
        return outputs
