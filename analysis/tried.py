"""What else was tried in the comparison: cells of other pairs or other numbers, as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.cells import Cell, Counted, read_cell
from toolkit.train.recipes import RECIPES

FOLDER = "tried"
HEADER = (
    "cell",
    "arm",
    "harmful pairs from",
    "numbers",
    "ORI",
    "FULL",
    "ADAPTIVE, best round",
    "SINGLE",
    "harmless refused",
    "perplexity / the base's",
    "on",
)


def read_tried(results: Path) -> dict[str, Cell]:
    """The cells in a comparison's folder of what was tried, by folder and name.

    Each try has a folder of its own there, with its cells as a comparison has them.
    """
    found = sorted((results / FOLDER).glob("*/*-seed*.json"))
    return {f"{p.parent.name}/{p.stem}": cell for p in found if (cell := read_cell(p))}


def tried_rows(cells: Mapping[str, Cell]) -> list[list[str]]:
    """A row a cell, as :data:`HEADER` names its parts."""
    rows = []
    for name, cell in cells.items():
        settings = cell.training["settings"] if cell.training else {}
        rows.append(
            [
                f"`{name}`",
                cell.arm,
                _harmful(cell),
                numbers(settings),
                _best(cell.of("ORI")),
                _best(cell.of("FULL")),
                _best(cell.adaptive_rounds()),
                _best(cell.of("SINGLE")),
                _refused(cell.of("ORI", "harmless")),
                f"{cell.perplexity / cell.perplexity_base:.3f}",
                cell.device or "-",
            ]
        )
    return rows


def _harmful(cell: Cell) -> str:
    sources = (cell.pairs or {}).get("sources", [])
    return ", ".join(s["name"] for s in sources if s["role"] in ("harmful", "safety")) or "-"


def numbers(settings: Mapping[str, Any]) -> str:
    """A run's settings in words, as its card has them."""
    if not settings:
        return "-"
    told = [f"{settings['steps']} steps", f"rate {settings['learning_rate']:g}"]
    loss = RECIPES[settings["recipe"]].loss
    if loss == "dpo":
        told += [f"beta {settings['beta']:g}", f"SFT {settings['sft_weight']:g}"]
    if loss == "guard":
        told += [f"KL {settings['kl_weight']:g}", f"found every {settings['find_every']}"]
    if settings["recipe"] == "adaptive":
        drawn = settings["mixture"]
        told += [
            f"found every {settings['find_every']}",
            f"whole {drawn['whole']:g}, rounds {drawn['rounds']:g}, "
            f"part of the head ({drawn['head']:.0%}) {drawn['share']:g}, held {drawn['hold']:g}",
        ]
        # Cells made before there were these have none.
        if drawn.get("probe"):
            told.append(f"NeuroStrike's {drawn['probe']:g}")
        if drawn.get("frames"):
            told.append(f"prompts framed {drawn['frames']:g}")
        if drawn.get("refusing") is not None:
            told.append(f"refusals {drawn['refusing']:.0%} of the pairs")
    return ", ".join(told)


def _best(found: Sequence[Counted]) -> str:
    if not found:
        return "-"
    most = max(found, key=lambda c: c.success)
    return f"{most.success}/{most.n}"


def _refused(found: Sequence[Counted]) -> str:
    return f"{found[0].refused}/{found[0].n}" if found else "-"
