"""Figures on light and on dark paper: ink that reads, and scales whose zero recedes.

A figure is drawn once, in a neutral ink. A page that knows its reader's theme swaps that
ink and the palette, so that text has the contrast that WCAG asks for (4.5 : 1), marks have
3 : 1, and the middle of a diverging scale is always nearest to the paper.
"""

from dataclasses import dataclass, field

import plotly.graph_objects as go

from analysis.figures.style import BLUE, DIVERGING, GREEN, GRID, INK, VERDICTS, VERMILION


@dataclass(frozen=True)
class Paper:
    """What figures are drawn on, and with.

    Args:
        background: of the page behind them.
        ink: of text and axes.
        grid: of grid lines, which may be faint.
        zero: of the middle of diverging scales.
        swap: neutral colour -> the one that reads on this paper.
    """

    background: str
    ink: str
    grid: str
    zero: str
    swap: dict[str, str] = field(default_factory=dict)

    def color(self, neutral: str) -> str:
        """A figure's colour as it is on this paper."""
        return {INK: self.ink, GRID: self.grid, **self.swap}.get(neutral, neutral)

    @property
    def diverging(self) -> list[list[float | str]]:
        """The scale for signed scores: blue, zero, vermilion."""
        return [[0.0, self.color(BLUE)], [0.5, self.zero], [1.0, self.color(VERMILION)]]


LIGHT = Paper(
    background="#ffffff",
    ink="#4f5b67",
    grid="rgba(79, 91, 103, 0.18)",
    zero="#d3d8dd",
    swap={VERDICTS["degenerate"]: "#8b949d"},
)
DARK = Paper(
    background="#10161c",
    ink="#b4bec8",
    grid="rgba(180, 190, 200, 0.16)",
    zero="#3a444f",
    swap={
        BLUE: "#45a2dc",
        VERMILION: "#f0803a",
        GREEN: "#35c499",
        VERDICTS["degenerate"]: "#77828d",
    },
)
_PLACES = (
    *("marker.color", "marker.line.color", "line.color"),
    *("error_x.color", "error_y.color", "textfont.color"),
)


def on_paper(figure: go.Figure, paper: Paper) -> go.Figure:
    """Redraw a figure of :mod:`analysis.figures` for a paper, in place.

    Args:
        figure: as its builder made it, in neutral ink.
        paper: light or dark.

    Returns:
        The same figure.
    """
    for trace in figure.data:
        for place in _PLACES:
            if place.partition(".")[0] not in trace:
                continue  # this kind of trace has no such part; asking for it is slow
            try:
                color = trace[place]
            except (KeyError, ValueError):
                continue
            if isinstance(color, str):
                trace[place] = paper.color(color)
    for shape in figure.layout.shapes:
        if shape.line.color:
            shape.line.color = paper.color(shape.line.color)
    for note in figure.layout.annotations:
        if note.font.color:
            note.font.color = paper.color(note.font.color)
    figure.update_layout(
        font_color=paper.ink, modebar={"color": paper.ink, "activecolor": paper.color(BLUE)}
    )
    axis = {"gridcolor": paper.grid, "linecolor": paper.grid}
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    scale = figure.layout.coloraxis.colorscale
    if scale and [color for _, color in scale] == [color for _, color in DIVERGING]:
        figure.update_layout(coloraxis_colorscale=paper.diverging)
    return figure
