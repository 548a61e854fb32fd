"""How long work tells how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Hears of work done. Called with units finished so far, never fewer than before."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``stage`` are finished."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""
