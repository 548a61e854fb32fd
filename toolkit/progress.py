"""How long work tells how far it is."""

from collections.abc import Callable
from typing import Any, Protocol

OnEvent = Callable[[dict[str, Any]], None]
"""Hears of what happens in a run: a dictionary whose ``kind`` says what the rest is."""


class Progress(Protocol):
    """Hears of work done. Called with units finished so far, never fewer than before."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``stage`` are finished."""
        ...


def unheard(event: dict[str, Any]) -> None:
    """Drop an event."""


def silent(stage: str, done: int, total: int) -> None:
    """A progress that nobody watches."""
