"""The comparison's figure: attack success of each arm, as an SVG that needs no browser.

The Markdown page is read where no script runs, so that the figure is a still picture; the
bars are few and plain enough to be written down as they are.
"""

import html
from collections.abc import Mapping
from pathlib import Path

from analysis.arms import ARMS, titled
from analysis.cells import Cell
from analysis.contrasts import ADAPTIVE, AGAIN, FULL, share
from analysis.figures.style import BLUE, GREEN, INK, VERMILION
from toolkit.files import write_atomically

NAME = "replicate.svg"
BAR, GAP, LEFT, WIDTH, TOP = 13, 18, 340, 520, 46


def svg(arms: Mapping[str, list[Cell]]) -> str:
    """Success on harmful prompts with its 95 % interval: set found before, again, adaptive."""
    series = ((FULL, BLUE), (AGAIN, VERMILION), (ADAPTIVE, GREEN))
    names = [name for name in ARMS if name in arms]
    step = BAR * len(series) + GAP
    height = TOP + step * len(names) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 40}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">'
    ]
    for place, (column, color) in enumerate(series):
        x = LEFT + place * 170
        parts.append(f'<rect x="{x}" y="12" width="12" height="12" fill="{color}"/>')
        parts.append(f'<text x="{x + 18}" y="23">{html.escape(column.name)}</text>')
    for tick in range(0, 101, 20):
        at = LEFT + WIDTH * tick / 100
        parts.append(
            f'<line x1="{at:g}" x2="{at:g}" y1="{TOP - 8}" y2="{height - 30}" stroke="{INK}" '
            'stroke-opacity="0.25"/>'
        )
        parts.append(f'<text x="{at:g}" y="{height - 12}" text-anchor="middle">{tick} %</text>')
    for row, name in enumerate(names):
        y = TOP + row * step
        middle = y + BAR * len(series) / 2 + 4
        title = html.escape(titled(name, [cell.seed for cell in arms[name]]))
        parts.append(f'<text x="{LEFT - 10}" y="{middle:g}" text-anchor="end">{title}</text>')
        for place, (column, color) in enumerate(series):
            found = share(arms[name], column)
            if found is None:
                continue
            top = y + place * BAR
            low, high = (LEFT + WIDTH * end for end in (found.low, found.high))
            parts.append(
                f'<rect x="{LEFT}" y="{top}" width="{WIDTH * found.share:.1f}" height="{BAR - 2}" '
                f'fill="{color}"><title>{html.escape(f"{column.name}: {found}")}</title></rect>'
            )
            parts.append(
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{top + BAR / 2 - 1:g}" '
                f'y2="{top + BAR / 2 - 1:g}" stroke="{INK}" stroke-width="1.5"/>'
            )
    return "\n".join([*parts, "</svg>\n"])


def draw(arms: Mapping[str, list[Cell]], folder: Path) -> list[str]:
    """Write the figure; its name as a page beside the folder has it."""
    write_atomically(folder / NAME, svg(arms))
    return [f"{folder.name}/{NAME}"]
