"""What happens at every training step: restore, tell, check, stop."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from toolkit.errors import SafeNeuronError
from toolkit.train.freeze import FrozenNeurons

OnEvent = Callable[[dict[str, Any]], None]
WHOLE = "whole"
FIGURES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
}


class Watcher(TrainerCallback):
    """Holds frozen neurons, reports each step, marks checkpoints whole, stops when asked."""

    def __init__(
        self,
        frozen: FrozenNeurons | None,
        on_event: OnEvent,
        should_stop: Callable[[], bool],
    ) -> None:
        self._frozen = frozen
        self._on_event = on_event
        self._should_stop = should_stop
        self._started = time.monotonic()
        self.stopped = False
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Undo what weight decay did to frozen entries."""
        if self._frozen is not None:
            self._frozen.restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop when the run was cancelled."""
        if state.global_step < state.max_steps and self._should_stop():
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint whole: everything else of it is written by now."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / WHOLE).write_text("", "utf-8")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Report a step's figures; a loss that is no number ends the run."""
        if not logs or "loss" not in logs:
            return
        figures = {name: float(logs[key]) for key, name in FIGURES.items() if key in logs}
        if not all(math.isfinite(figures[name]) for name in ("loss", "grad_norm")):
            raise SafeNeuronError(
                f"the loss is not a number at step {state.global_step}; lower --learning-rate. "
                "The last checkpoint is kept"
            )
        self.first = self.first or figures
        self.last = figures
        self._on_event(
            {
                "kind": "train",
                "step": state.global_step,
                "total": state.max_steps,
                "seconds": round(time.monotonic() - self._started, 2),
                **figures,
            }
        )
