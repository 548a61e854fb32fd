"""The safety map, drawn: cells of layers by neurons, and beside them what each layer holds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.style import BLUE, DIVERGING, GREEN, INK, NAMES, styled
from analysis.safety_map import Grid, Window, colour_limit, grid, mass_by_layer
from analysis.scores.table import column
from toolkit.neurons import NeuronSet

FAINT = 0.3  # of cells without a selected neuron
UNSEEN = 0.002  # nothing to the eye
TILES = 2_500  # cells that still have a gap between them


@dataclass(frozen=True)
class Colours:
    """What the colours of a map mean.

    Args:
        label: what is coloured, with its unit.
        limit: the value of full colour, either way from zero.
    """

    label: str
    limit: float


@dataclass(frozen=True)
class Strips:
    """What stands beside the map, a number a layer, ``[layers]`` each.

    Args:
        fraction: share of the layer's neurons that is selected, 0 to 1.
        mass: positive scores of its selected neurons, summed.
    """

    fraction: npt.NDArray[np.float64]
    mass: npt.NDArray[np.float64]

    @classmethod
    def of(cls, values: npt.NDArray[np.float64], neurons: NeuronSet) -> "Strips":
        """The strips of a selection under a score."""
        counts, widths = neurons.counts(), np.array(neurons.widths)
        share = np.divide(counts, widths, out=np.zeros(len(widths)), where=widths > 0)
        return cls(share, mass_by_layer(values, neurons))


def safety_map_figure(
    scores: pd.DataFrame,
    neurons: NeuronSet,
    score: str = "sas",
    chosen: tuple[int, int] | None = None,
    window: Window | None = None,
) -> go.Figure:
    """Layers against neurons, the selected ones in full colour and the rest faint.

    Args:
        scores: as :func:`analysis.scores.table.score_table` makes it, in its order.
        neurons: the selection.
        score: the column that colours the cells.
        chosen: (layer, neuron) of one to be ringed.
        window: the part to show; all of the model when left out.
    """
    values = column(scores, score)
    colours = Colours(NAMES.get(score, score), colour_limit(values))
    cells = grid(values, neurons, window)
    strips = None if cells.folded else Strips.of(values, neurons)
    return map_figure(cells, colours, strips, chosen)


def map_figure(
    cells: Grid,
    colours: Colours,
    strips: Strips | None = None,
    chosen: tuple[int, int] | None = None,
) -> go.Figure:
    """Draw a grid of cells.

    A point without colour lies on each cell for clicks and words; its ``customdata`` is
    ``[neuron, value]`` (and how many are selected, of several) and its layer is ``y``, or the
    window's where it is folded.

    Args:
        cells: what to draw.
        colours: what the colours mean.
        strips: drawn beside the cells; not of folded ones, which are of one layer.
        chosen: (layer, neuron) of one to be ringed.
    """
    if strips is None:
        figure = make_subplots(cols=1)
    else:
        figure = make_subplots(
            cols=3,
            shared_yaxes=True,
            column_widths=[0.78, 0.11, 0.11],
            horizontal_spacing=0.012,
        )
    rows, across = cells.value.shape
    y0, dy = (int(cells.first[0]), across) if cells.folded else (cells.window.layers[0], 1)
    x0 = 0.0 if cells.folded else cells.window.neurons[0] + (cells.per - 1) / 2
    values = np.clip(cells.value, -colours.limit, colours.limit).astype(np.float32)
    gap = 1 if rows * across <= TILES else 0
    for opacity, member in ((FAINT, cells.chosen == 0), (1.0, cells.chosen > 0)):
        figure.add_heatmap(
            z=np.where(member, values, np.float32(np.nan)),
            x0=x0,
            dx=cells.per,
            y0=y0,
            dy=dy,
            xgap=gap,
            ygap=gap or int(rows <= 48),
            coloraxis="coloraxis",
            opacity=opacity,
            hoverinfo="skip",
            row=1,
            col=1,
        )
    _add_points(figure, cells, x0, y0, dy)
    if chosen is not None and (place := cells.place(*chosen)) is not None:
        figure.add_scatter(
            x=[x0 + place[1] * cells.per],
            y=[y0 + place[0] * dy],
            mode="markers",
            hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 17, "color": INK, "line": {"width": 2.5}},
            row=1,
            col=1,
        )
    if strips is not None:
        _add_strips(figure, cells, strips)
    _set_axes(figure, cells, strips is not None)
    figure.update_layout(
        showlegend=False,
        clickmode="event+select",
        dragmode="zoom",
        coloraxis={
            "colorscale": DIVERGING,
            "cmin": -colours.limit,
            "cmax": colours.limit,
            "colorbar": {
                "title": {"text": colours.label, "side": "top", "font": {"size": 12}},
                "orientation": "h",
                "thickness": 8,
                "len": 0.4,
                "lenmode": "fraction",
                "x": 0,
                "xanchor": "left",
                "y": 1.01,
                "yanchor": "bottom",
                "outlinewidth": 0,
                "nticks": 5,
                "tickfont": {"size": 11},
            },
        },
    )
    height = 160 + (max(5 * rows, 240) if cells.folded else 16 * rows)
    figure = styled(figure, int(np.clip(height, 340, 760)))
    return figure.update_layout(margin={"l": 52, "r": 8, "t": 66, "b": 46}, bargap=0.15)


def _add_points(figure: go.Figure, cells: Grid, x0: float, y0: int, dy: int) -> None:
    """What is clicked and told: one invisible point a cell."""
    row, col = np.nonzero(cells.neuron >= 0)
    told = [cells.neuron[row, col], cells.value[row, col]]
    layer = f"layer {cells.window.layers[0]}" if cells.folded else "layer %{y}"
    words = layer + ", neuron %{customdata[0]:.0f}: %{customdata[1]:.3g}"
    if cells.per > 1:  # of one neuron, its full colour says whether it is selected
        told.append(cells.chosen[row, col])
        words += f"<br>of {cells.per} here, %{{customdata[2]:.0f}} selected"
    x, y = x0 + col * cells.per, y0 + row * dy
    unseen: dict[str, Any] = {"marker": {"opacity": UNSEEN}}
    figure.add_scattergl(
        # As short as they may be: a large model's map is sent at every change of a threshold.
        x=_short(x),
        y=_short(y),
        customdata=np.stack(told, axis=1).astype(np.float32),
        mode="markers",
        marker={"size": 8, "opacity": UNSEEN, "color": INK},
        selected=unseen,
        unselected=unseen,
        hovertemplate=words + "<extra></extra>",
        row=1,
        col=1,
    )


def _short(places: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Places along an axis in the shortest type that holds them."""
    if (places % 1).any():
        return places.astype(np.float32)
    return places.astype(np.int16 if places.max(initial=0) < 1 << 15 else np.int32)


def _add_strips(figure: go.Figure, cells: Grid, strips: Strips) -> None:
    top, bottom = cells.window.layers
    layers = np.arange(top, bottom + 1)
    for place, (values, color, words) in enumerate(
        (
            (100 * strips.fraction, BLUE, "%{x:.2f} % selected"),
            (strips.mass, GREEN, "mass %{x:.4g}"),
        )
    ):
        figure.add_bar(
            x=values[top : bottom + 1],
            y=layers,
            orientation="h",
            marker={"color": color, "line": {"width": 0}},
            hovertemplate="layer %{y}: " + words + "<extra></extra>",
            row=1,
            col=place + 2,
        )


def _set_axes(figure: go.Figure, cells: Grid, with_strips: bool) -> None:
    rows, across = cells.value.shape
    if cells.folded:
        first, last = int(cells.first[0]), int(cells.first[-1])
        _name_below(figure, "x", "neuron, counted on from the row's first")
        figure.update_xaxes(range=[-0.5, across - 0.5], col=1)
        # Read as a page: the first row on top.
        figure.update_yaxes(
            title=f"layer {cells.window.layers[0]}, from neuron",
            range=[last + across / 2, first - across / 2],
            nticks=12,
            col=1,
        )
        return
    (top, bottom), left = cells.window.layers, cells.window.neurons[0]
    _name_below(figure, "x", "neuron")
    figure.update_xaxes(range=[left - 0.5, left + across * cells.per - 0.5], col=1)
    figure.update_yaxes(range=[top - 0.6, bottom + 0.6], dtick=1 if rows <= 16 else None)
    figure.update_yaxes(title="layer", col=1)
    if with_strips:
        ticks = {"rangemode": "tozero", "nticks": 2, "tickangle": 0, "tickfont": {"size": 11}}
        for column, name in ((2, "%"), (3, "mass")):
            figure.update_xaxes(col=column, **ticks)
            _name_below(figure, f"x{column}", name)


def _name_below(figure: go.Figure, axis: str, name: str) -> None:
    """Name an axis below its ticks, at a distance of its own.

    An axis's title may be placed before its ticks are there, and comes to lie on them.
    """
    figure.add_annotation(
        text=name,
        x=0.5,
        xref=f"{axis} domain",
        y=0,
        yref="paper",
        yshift=-36,
        yanchor="middle",
        showarrow=False,
        font={"color": INK, "size": 13},
    )
