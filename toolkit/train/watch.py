"""What happens at every training step: restore, tell, check, stop."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from toolkit.errors import SafeNeuronError
from toolkit.progress import OnEvent
from toolkit.signals import on_sigterm
from toolkit.train.freeze import FrozenNeurons
from toolkit.train.parallel import any_process

WHOLE = "whole"
FIGURES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "mean_token_accuracy": "token_accuracy",
    "guard/pruned": "pruned_loss",
    "guard/divergence": "divergence",
}


def figures_of(logs: Mapping[str, Any]) -> dict[str, float]:
    """What is told of a step, out of what the trainer logs of it."""
    return {name: float(logs[key]) for key, name in FIGURES.items() if key in logs}


def whole_checkpoints(folder: Path) -> dict[int, Path]:
    """The whole checkpoints in a folder, step -> checkpoint, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / WHOLE).exists()]
    steps = {int(path.name.split("-")[1]): path for path in found}
    return dict(sorted(steps.items()))


def seconds_until(checkpoint: Path | None) -> float:
    """How long a run had trained until a whole checkpoint, over all its processes."""
    # Checkpoints of before this was written have an empty mark.
    return float((checkpoint / WHOLE).read_text("utf-8") or 0) if checkpoint else 0.0


class Watcher(TrainerCallback):
    """Holds frozen neurons, reports each step, marks checkpoints whole, stops when asked."""

    def __init__(
        self,
        frozen: FrozenNeurons | None,
        on_event: OnEvent,
        should_stop: Callable[[], bool],
        spent: Callable[[], float],
    ) -> None:
        self._frozen = frozen
        self._on_event = on_event
        self._should_stop = should_stop
        self._spent = spent
        self.stopped = False

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Hold what really trains: FSDP has made the parameters anew by now."""
        if self._frozen is not None:
            self._frozen.attach(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Undo what weight decay did to frozen entries."""
        if self._frozen is not None:
            self._frozen.restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop when the run was cancelled."""
        if state.global_step >= state.max_steps or control.should_training_stop:
            return  # it ends here anyway
        if any_process(self._should_stop(), args.device):
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint whole: everything else of it is written by now."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / WHOLE).write_text(f"{self._spent():.1f}", "utf-8")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Report a step's figures; a loss that is no number ends the run."""
        if not logs or "loss" not in logs:
            return
        figures = figures_of(logs)
        if not all(math.isfinite(figures.get(name, 0.0)) for name in ("loss", "grad_norm")):
            raise not_a_number(Path(args.output_dir), state.global_step)
        self._on_event(
            {
                "kind": "train",
                "step": state.global_step,
                "total": state.max_steps,
                "seconds": round(self._spent(), 2),
                **figures,
            }
        )


def not_a_number(folder: Path, step: int) -> SafeNeuronError:
    """The error of a loss that is no number, with the last good checkpoint kept.

    The weights that gave the loss of ``step`` are those of the step before: a checkpoint of
    them is no good, and is not gone on from.
    """
    for made, path in whole_checkpoints(folder).items():
        if made >= step - 1:
            (path / WHOLE).unlink(missing_ok=True)
    good = list(whole_checkpoints(folder))
    kept = f"the last good checkpoint, of step {good[-1]}, is kept" if good else "none was saved"
    return SafeNeuronError(
        f"the loss is not a number at step {step}; lower --learning-rate ({kept})"
    )


@contextmanager
def sigterm_stops(should_stop: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Let SIGTERM ask for a stop, too, where nobody else handles it.

    Yields:
        ``should_stop``, or a signal has come.
    """
    told = threading.Event()
    with on_sigterm(told.set):
        yield lambda: told.is_set() or should_stop()
