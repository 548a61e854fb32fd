"""Cells of the comparison made a second time on another device: how much a device does."""

from collections.abc import Sequence
from pathlib import Path

from analysis.arms import titled
from analysis.cells import Cell, read_cell
from analysis.contrasts import COLUMNS

FOLDER = "elsewhere"


def read_elsewhere(results: Path) -> list[Cell]:
    """The cells in a comparison's folder of those made again."""
    found = sorted((results / FOLDER).glob("*-seed*.json"))
    return [cell for path in found if (cell := read_cell(path))]


def elsewhere_rows(cells: Sequence[Cell], again: Sequence[Cell]) -> list[list[str]]:
    """Two rows a cell that was made twice: its name, its device, and each column's successes.

    A cell made with another mask, on other prompts or on other pairs is not the same one.
    """
    made = {(cell.arm, cell.seed): cell for cell in cells}
    rows = []
    for other in again:
        own = made.get((other.arm, other.seed))
        if own is None or _made_from(own) != _made_from(other):
            continue
        for cell in (own, other):
            told = [", ".join(str(c.success) for c in column.pick(cell)) for column in COLUMNS]
            name = titled(cell.arm, [cell.seed])
            rows.append([name, cell.device or "unknown", *(counts or "-" for counts in told)])
    return rows


def _made_from(cell: Cell) -> tuple[object, ...]:
    pairs = cell.pairs and cell.pairs["sha256"]
    settings = cell.training and cell.training["settings"]
    return cell.base, cell.mask, cell.prompts, pairs, settings
