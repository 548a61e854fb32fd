"""Figures: pure functions from tables to plotly figures. No torch, no page, no state."""

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.style import (
    BLUE,
    DIVERGING,
    INK,
    NAMES,
    PANELS,
    PATTERNS,
    SERIES,
    VERDICTS,
    VERMILION,
    legend_below,
    styled,
)
from toolkit.neurons import NeuronSet

BACKGROUND = 3000  # neurons outside the set that are drawn: enough to see, few enough to send
CARRIED = ["layer", "neuron", "es", "sas", "delta"]


def _limit(values: "pd.Series[float]") -> float:
    """Where the colours end: nearly the greatest size, so that one outlier fades nothing."""
    sizes = values.abs().to_numpy()
    sizes = sizes[np.isfinite(sizes)]
    limit = float(np.quantile(sizes, 0.999)) if len(sizes) else 0.0
    return limit or 1.0


def safety_map_figure(
    scores: pd.DataFrame,
    neurons: NeuronSet,
    score: str = "sas",
    chosen: tuple[int, int] | None = None,
) -> go.Figure:
    """Layer against neuron: the selected ones strong, the strongest of the rest faint.

    Every point carries ``customdata = [layer, neuron, es, sas, delta]``, for clicks.

    Args:
        scores: as :func:`analysis.scores.table.score_table` makes it.
        neurons: the selection.
        score: the column that colours the points: ``es``, ``sas`` or ``delta``.
        chosen: (layer, neuron) of one to be ringed.
    """
    widths = np.array(neurons.widths, dtype=np.int64)
    place = np.concatenate([[0], np.cumsum(widths)])[scores["layer"]] + scores["neuron"]
    member = np.concatenate(neurons.masks())[place]
    rest = scores[~member]
    order = np.argsort(-rest[score].abs().fillna(0).to_numpy(), kind="stable")[:BACKGROUND]
    limit = _limit(scores[score])
    shared = {"coloraxis": "coloraxis", "symbol": "square", "line": {"width": 0}}
    figure = go.Figure()
    for name, part, size, opacity in (
        ("not selected (strongest)", rest.iloc[np.sort(order)], 5, 0.35),
        ("selected", scores[member], 8, 1.0),
    ):
        values = part[score].replace([np.inf, -np.inf], [limit, -limit])
        figure.add_scattergl(
            x=part["neuron"].to_numpy(),
            y=part["layer"].to_numpy(),
            # Lists, not an array: a browser hands a typed array's row back as an object.
            customdata=_rows(part),
            mode="markers",
            name=f"{name}: {len(part):,}",
            marker=shared | {"color": values.to_numpy(), "size": size, "opacity": opacity},
            selected={"marker": {"opacity": 1.0}},
            unselected={"marker": {"opacity": opacity}},
            hovertemplate="layer %{customdata[0]}, neuron %{customdata[1]}<br>ES %{customdata[2]}"
            "<br>SAS %{customdata[3]}<br>shift %{customdata[4]}<extra></extra>",
        )
    if chosen is not None:
        figure.add_scatter(
            x=[chosen[1]],
            y=[chosen[0]],
            mode="markers",
            name=f"layer {chosen[0]}, neuron {chosen[1]}",
            hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 17, "color": INK, "line": {"width": 2}},
        )
    figure.update_xaxes(title="neuron", range=[-0.01 * widths.max(), 1.01 * widths.max()])
    figure.update_yaxes(title="layer", dtick=1 if len(widths) <= 16 else None)
    figure.update_yaxes(range=[-0.6, len(widths) - 0.4])
    figure.update_layout(
        clickmode="event+select",
        dragmode="zoom",
        coloraxis={
            "colorscale": DIVERGING,
            "cmin": -limit,
            "cmax": limit,
            "colorbar": {"title": {"text": score.upper()}, "thickness": 10, "outlinewidth": 0},
        },
    )
    return styled(figure, int(np.clip(160 + 16 * len(widths), 320, 760)))


def _rows(part: pd.DataFrame) -> list[list[float]]:
    """``CARRIED`` of each row, to four digits."""
    numbers = part[CARRIED[2:]].to_numpy(dtype=np.float64)
    places = part[CARRIED[:2]].to_numpy()
    return [
        [int(layer), int(neuron), *(float(f"{value:.4g}") for value in row)]
        for (layer, neuron), row in zip(places, numbers, strict=True)
    ]


def layer_fraction_figure(neurons: NeuronSet) -> go.Figure:
    """Share of each layer's neurons that is selected, in per cent; dotted: of the model."""
    counts, widths = neurons.counts(), np.array(neurons.widths)
    share = 100 * np.divide(counts, widths, out=np.zeros(len(widths)), where=widths > 0)
    figure = go.Figure()
    figure.add_bar(
        x=np.arange(len(widths)),
        y=share,
        customdata=np.column_stack([counts, widths]).tolist(),
        marker_color=BLUE,
        hovertemplate="layer %{x}: %{customdata[0]} of %{customdata[1]}<extra></extra>",
    )
    figure.add_hline(
        y=100 * neurons.fraction,
        line={"color": INK, "dash": "dot", "width": 1},
    )
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="selected neurons, %", rangemode="tozero")
    return styled(figure, 300)


def score_histogram(
    scores: pd.DataFrame, score: str = "sas", threshold: float | None = None
) -> go.Figure:
    """How many neurons have each score, on a logarithmic axis, and the threshold."""
    values = scores[score].to_numpy(dtype=np.float64)
    values = values[np.isfinite(values)]
    counts, edges = np.histogram(values, bins=80)
    figure = go.Figure()
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=counts,
        width=np.diff(edges),
        marker={"color": BLUE, "line": {"width": 0}},
        hovertemplate="%{x:.2f}: %{y} neurons<extra></extra>",
    )
    if threshold is not None:
        figure.add_vline(
            x=threshold,
            line={"color": VERMILION, "width": 2},
            annotation={"text": f"> {threshold:g}", "font": {"color": VERMILION}},
        )
    figure.update_xaxes(title=NAMES.get(score, score))
    figure.update_yaxes(title="neurons", type="log", dtick=1)
    figure.update_yaxes(range=[-0.2, float(np.log10(max(counts.max(), 1))) + 0.2])
    return styled(figure, 280)


def _errors(table: pd.DataFrame, verdict: str) -> dict[str, Any]:
    up = 100 * (table[f"{verdict}_high"] - table[verdict])
    down = 100 * (table[verdict] - table[f"{verdict}_low"])
    return {
        "type": "data",
        "symmetric": False,
        "array": up.to_numpy(),
        "arrayminus": down.to_numpy(),
        "color": INK,
        "thickness": 1.3,
        "width": 3,
    }


def attack_figure(table: pd.DataFrame) -> go.Figure:
    """Each setting's verdicts with Wilson 95 % intervals, a panel for each kind of prompts.

    Args:
        table: as :func:`analysis.robustness.headline` gives it.
    """
    sides = [side for side, _ in PANELS if side in set(table["side"])]
    titles = [f"{side} prompts" for side in sides]
    figure = make_subplots(cols=max(len(sides), 1), shared_yaxes=True, subplot_titles=titles)
    for column, side in enumerate(sides, start=1):
        part = table[table["side"] == side]
        for verdict, color in VERDICTS.items():
            figure.add_bar(
                x=part["setting"].to_numpy(),
                y=100 * part[verdict].to_numpy(),
                customdata=part[[f"k_{verdict}", "n", "neurons"]].to_numpy().tolist(),
                error_y=_errors(part, verdict),
                name=verdict,
                legendgroup=verdict,
                showlegend=column == 1,
                marker_color=color,
                hovertemplate="%{x}, %{customdata[2]} neurons removed<br>"
                + verdict
                + " %{customdata[0]}/%{customdata[1]} = %{y:.1f} %<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_yaxes(range=[0, 104])
    figure.update_yaxes(title="answers, %", col=1)
    figure.update_annotations(font={"color": INK, "size": 13})
    # Names of settings are turned where they have little room, and need it below them.
    return legend_below(styled(figure, 430)).update_layout(legend={"y": -0.26}, margin={"b": 110})


def compare_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Several attacks side by side: what complied of the harmful, what of the rest was refused.

    Args:
        tables: name -> table as :func:`analysis.robustness.headline` gives it.
    """
    asked = {side for table in tables.values() for side in table["side"]}
    panels = [panel for panel in PANELS if panel[0] != "over-refusal" or panel[0] in asked]
    titles = [f"{side} prompts: {verdict}" for side, verdict in panels]
    figure = make_subplots(cols=len(panels), shared_yaxes=True, subplot_titles=titles)
    for column, (side, verdict) in enumerate(panels, start=1):
        for place, (name, table) in enumerate(tables.items()):
            part = table[table["side"] == side]
            figure.add_bar(
                x=part["setting"].to_numpy(),
                y=100 * part[verdict].to_numpy(),
                customdata=part[[f"k_{verdict}", "n"]].to_numpy().tolist(),
                error_y=_errors(part, verdict),
                name=html.escape(name),
                legendgroup=str(place),
                showlegend=column == 1,
                marker={
                    "color": SERIES[place % len(SERIES)],
                    "pattern": {"shape": PATTERNS[place % len(PATTERNS)], "solidity": 0.25},
                },
                hovertemplate="%{x}: %{customdata[0]}/%{customdata[1]} = %{y:.1f} %",
                row=1,
                col=column,
            )
    figure.update_yaxes(range=[0, 104])
    figure.update_yaxes(title="answers, %", col=1)
    figure.update_annotations(font={"color": INK, "size": 13})
    # Names of settings are turned where they have little room, and need it below them.
    return legend_below(styled(figure, 430)).update_layout(legend={"y": -0.26}, margin={"b": 110})
