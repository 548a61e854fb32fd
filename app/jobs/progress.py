"""How far a job is, read from its events."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class HowFar:
    """The stage a job is in.

    Args:
        stage: its name.
        done, total: units of it.
        left: seconds until the stage is over, at the pace so far; None while unknown.
    """

    stage: str
    done: int
    total: int
    left: float | None

    @property
    def share(self) -> float:
        """Done of total, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    def __str__(self) -> str:
        text = f"{self.stage}: {self.done} of {self.total}"
        if self.left is None or self.done >= self.total:
            return text
        return f"{text}, about {duration(self.left)} left"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def how_far(events: Sequence[dict[str, Any]]) -> HowFar | None:
    """The newest stage of a job's events; None before the first.

    The pace is that of the stage since the job last started: time before a kill and the
    wait for the next start say nothing about it.
    """
    first: tuple[float, int] | None = None
    now: tuple[str, int, int, float] | None = None
    for event in events:
        kind = event.get("kind")
        if kind == "start":
            first = None
        if kind not in {"stage", "train"}:
            continue
        stage = "train" if kind == "train" else str(event["stage"])
        done = int(event["step"] if kind == "train" else event["done"])
        # Even where the time of day is set; it says nothing across starts, nor is it asked to.
        time = float(event.get("clock", event["time"]))
        if first is None or now is None or now[0] != stage:
            first = (time, done)
        now = (stage, done, int(event["total"]), time)
    if now is None or first is None:
        return None
    stage, done, total, time = now
    gained, took = done - first[1], time - first[0]
    left = took / gained * (total - done) if gained > 0 and took > 0 else None
    return HowFar(stage, done, total, left)


def training_steps(events: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row a training step; a step done again after a kill counts once, as it was last."""
    return _steps(events, "train")


def held_out_looks(events: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row a look at what is held out; one done again counts once."""
    return _steps(events, "held-out")


def _steps(events: Sequence[dict[str, Any]], kind: str) -> pd.DataFrame:
    rows = [event for event in events if event.get("kind") == kind]
    frame = pd.DataFrame(rows)
    return frame.drop_duplicates("step", keep="last").sort_values("step") if rows else frame
