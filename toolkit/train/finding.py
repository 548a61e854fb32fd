"""Looking for the neurons again while a model trains: what was found, and when to look.

A set found before training goes stale as the model moves (NeuronGuard, 2608.23959). How
neurons are found is for the floor above to say; here is what it hands down, and the
callback that asks for it every so many steps and keeps it in the checkpoints.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from toolkit.neurons import NeuronSet
from toolkit.train.parallel import distributed

FOUND = "found.json"


@dataclass(frozen=True)
class Candidate:
    """A neuron and its mean activation on harmful prompts."""

    layer: int
    index: int
    activation: float


@dataclass(frozen=True)
class Found:
    """What one search found on the model as it then was.

    Args:
        rounds: what each round of an attacker who looks again newly finds.
        head: the neurons that rank highest on the whole model, a few per cent.
        candidates: neurons that the single-neuron attack would hold.
        probed: what NeuroStrike would remove; None where nobody asked.
    """

    rounds: tuple[NeuronSet, ...]
    head: NeuronSet
    candidates: tuple[Candidate, ...] = ()
    probed: NeuronSet | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is kept in a checkpoint."""
        return {
            "widths": list(self.head.widths),
            "rounds": [_listed(found) for found in self.rounds],
            "head": _listed(self.head),
            "candidates": [[c.layer, c.index, c.activation] for c in self.candidates],
            "probed": None if self.probed is None else _listed(self.probed),
        }

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "Found":
        """Read what :meth:`to_json` wrote."""
        widths = kept["widths"]
        return cls(
            tuple(_set(widths, found) for found in kept["rounds"]),
            _set(widths, kept["head"]),
            tuple(Candidate(*entry) for entry in kept["candidates"]),
            # Checkpoints of runs that began before there was this have none.
            None if kept.get("probed") is None else _set(widths, kept["probed"]),
        )


Finder = Callable[[], Found]
"""Looks for the neurons on the model as it is now; draws nothing from global generators."""


def _listed(neurons: NeuronSet) -> dict[str, list[int]]:
    return {str(layer): found.tolist() for layer, found in neurons.layers().items()}


def _set(widths: list[int], listed: dict[str, list[int]]) -> NeuronSet:
    return NeuronSet(widths, {int(layer): found for layer, found in listed.items()})


class FindAgain(TrainerCallback):
    """Asks a finder at the first step and every ``every`` steps after it.

    Args:
        finder: looks.
        every: steps between two looks.
        on_found: hears of what was found, and the step.
        resumed: the checkpoint that the run goes on from, if any.
    """

    def __init__(
        self,
        finder: Finder,
        every: int,
        on_found: Callable[[Found, int], None],
        resumed: Path | None,
    ) -> None:
        self._finder, self._every, self._on_found = finder, every, on_found
        self._resumed = resumed
        self._last: Found | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look, or take up what the checkpoint remembers of the last look."""
        step = state.global_step
        if step % self._every == 0:
            self._tell(_agreed(self._finder()), step)
        elif self._last is None and self._resumed is not None:
            kept = json.loads((self._resumed / FOUND).read_text("utf-8"))
            self._tell(Found.from_json(kept), step)

    def _tell(self, found: Found, step: int) -> None:
        self._last = found
        self._on_found(found, step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep what was found beside the weights."""
        if self._last is not None and state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / FOUND).write_text(json.dumps(self._last.to_json()), "utf-8")


def _agreed(found: Found) -> Found:
    """The first process's, so that rounding can't make processes differ."""
    if not distributed():
        return found
    box = [found.to_json()]
    dist.broadcast_object_list(box, src=0)
    return Found.from_json(box[0])
