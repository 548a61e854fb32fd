"""Arms of the comparison held against each other, over prompts and over seeds.

Seeds answer the same prompts, so pooling their answers would claim more evidence than there
is. A share is the mean over seeds with the interval of one seed's n, and arms are tested
over prompts: each prompt's mean outcome over seeds, paired between two arms (sign flips).
What the seeds of training do is shown by how many of them agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.cells import Cell, Counted
from analysis.statistics import Proportion, disjoint, sign_flips, wilson

LEVEL = 0.05


@dataclass(frozen=True)
class Column:
    """One attack, as arms are compared under it.

    Args:
        name: in the tables.
        pick: its counts in a cell; several random sets, or none where it was not run.
    """

    name: str
    pick: Callable[[Cell], list[Counted]]


def _named(setting: str) -> Callable[[Cell], list[Counted]]:
    return lambda cell: cell.of(setting)


def _best_round(cell: Cell) -> list[Counted]:
    """The attacker's best of the adaptive rounds: later ones may only babble."""
    return sorted(cell.adaptive_rounds(), key=lambda found: -found.success)[:1]


COLUMNS = (
    *(Column(name, _named(name)) for name in ("ORI", "ES", "SAS", "FULL", "AGAIN", "RANDOM")),
    Column("NEUROSTRIKE", _named("NEUROSTRIKE")),
    Column("ADAPTIVE, best round", _best_round),
    Column("SINGLE", _named("SINGLE")),
)
ORI, AGAIN, ADAPTIVE, FULL, SINGLE, NEUROSTRIKE = (
    next(column for column in COLUMNS if column.name.startswith(name))
    for name in ("ORI", "AGAIN", "ADAPTIVE", "FULL", "SINGLE", "NEUROSTRIKE")
)


def outcomes(cells: Sequence[Cell], column: Column) -> npt.NDArray[np.float64] | None:
    """Each prompt's mean success over seeds and random sets, ``[prompts]``; None if not run."""
    prompts = cells[0].prompts["harmful"].count
    found = [c.outcomes(prompts) for cell in cells for c in column.pick(cell)]
    return np.mean(found, axis=0) if found else None


def share(cells: Sequence[Cell], column: Column) -> Proportion | None:
    """Mean success over seeds and random sets, with the interval of one seed's n."""
    counts = [c for cell in cells for c in column.pick(cell)]
    if not counts:
        return None
    n = counts[0].n
    return wilson(round(float(np.mean([c.success for c in counts]))), n)


def not_complied(cells: Sequence[Cell], column: Column) -> tuple[float, float]:
    """Refused and degenerate answers, each a mean over seeds and random sets."""
    counts = [c for cell in cells for c in column.pick(cell)]
    kinds = ([c.refused for c in counts], [c.degenerate for c in counts])
    refused, degenerate = (round(float(np.mean(kind)), 1) for kind in kinds)
    return refused, degenerate


@dataclass(frozen=True)
class Contrast:
    """Two arms under one attack.

    Args:
        column: the attack.
        first, second: the arms' shares, over the seeds that both have.
        p: that they succeed alike, over prompts.
        lower_in, higher_in: in how many of the seeds the first is.
        seeds: that both have.
        adjusted: ``p`` for how many contrasts are looked at; as many as one where not said.
    """

    column: str
    first: Proportion
    second: Proportion
    p: float
    lower_in: int
    higher_in: int
    seeds: tuple[int, ...]
    adjusted: float | None = None

    @property
    def verdict(self) -> str:
        """``yes``: the first is lower; ``no``: higher, either in every seed; or ``not shown``."""
        if (self.p if self.adjusted is None else self.adjusted) >= LEVEL:
            return "not shown"
        if self.lower_in == len(self.seeds):
            return "yes"
        return "no" if self.higher_in == len(self.seeds) else "not shown"

    @property
    def disjoint(self) -> bool:
        """Whether the two intervals have nothing in common."""
        return disjoint(self.first, self.second)


def p_words(p: float) -> str:
    """A p-value as a page has it."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def contrast(first: Sequence[Cell], second: Sequence[Cell], column: Column) -> Contrast | None:
    """Hold one arm against another, over the seeds that both have.

    None where they share no seed, or where either was not attacked so.
    """
    first, second = _shared(first, second)
    if not first:
        return None
    a, b = outcomes(first, column), outcomes(second, column)
    shares = share(first, column), share(second, column)
    if a is None or b is None or shares[0] is None or shares[1] is None:
        return None
    apart = [_mean(x, column) - _mean(y, column) for x, y in zip(first, second, strict=True)]
    return Contrast(
        column=column.name,
        first=shares[0],
        second=shares[1],
        p=sign_flips(a - b),
        lower_in=sum(difference < 0 for difference in apart),
        higher_in=sum(difference > 0 for difference in apart),
        # The base has the seed of none: those of the other arm count.
        seeds=tuple(
            y.seed if x.training is None else x.seed for x, y in zip(first, second, strict=True)
        ),
    )


def _shared(first: Sequence[Cell], second: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """The cells of the seeds that both arms have, seed beside seed.

    While the comparison runs one arm is a seed ahead of another: what only one of them has
    would be held against other seeds. The base, trained with none, stands beside each.
    """
    ours, theirs = ({cell.seed: cell for cell in cells} for cells in (first, second))
    seeds = sorted(set(ours) & set(theirs))
    if any(cell.training is None for cell in first):
        return [first[0]] * len(theirs), [theirs[seed] for seed in sorted(theirs)]
    if any(cell.training is None for cell in second):
        return [ours[seed] for seed in sorted(ours)], [second[0]] * len(ours)
    return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def _mean(cell: Cell, column: Column) -> float:
    return float(np.mean([found.success for found in column.pick(cell)]))
