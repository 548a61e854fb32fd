"""Figures: pure functions from tables to plotly figures. No torch, no page, no state."""

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.maps import safety_map_figure
from analysis.figures.style import (
    BLUE,
    INK,
    NAMES,
    PANELS,
    PATTERNS,
    SERIES,
    VERDICTS,
    VERMILION,
    styled,
)
from toolkit.neurons import NeuronSet

__all__ = [
    "attack_figure",
    "compare_figure",
    "histogram_figure",
    "layer_fraction_figure",
    "safety_map_figure",
    "score_bins",
    "score_histogram",
    "success_figure",
]

UPRIGHT = 6  # settings whose names have room under upright bars; of more, each has a row
BAR, BETWEEN = 10, 12  # pixels of a lying bar, and between rows of them


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
    figure.update_xaxes(title="layer", tick0=0, dtick=max(1, -(-len(widths) // 16)))
    figure.update_yaxes(title="selected neurons, %", rangemode="tozero")
    return styled(figure, 300)


def score_histogram(
    scores: pd.DataFrame, score: str = "sas", threshold: float | None = None
) -> go.Figure:
    """How many neurons have each score, on a logarithmic axis, and the threshold."""
    return histogram_figure(*score_bins(scores[score].to_numpy(dtype=np.float64)), score, threshold)


def score_bins(
    values: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """How many finite values each of 80 bins has, ``[80]``, and the bins' edges, ``[81]``."""
    counts, edges = np.histogram(values[np.isfinite(values)], bins=80)
    return counts, edges


def histogram_figure(
    counts: npt.NDArray[np.int64],
    edges: npt.NDArray[np.float64],
    score: str,
    threshold: float | None = None,
) -> go.Figure:
    """Draw what :func:`score_bins` counted, and the threshold."""
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
    settings = table["setting"].nunique()
    for column, side in enumerate(sides, start=1):
        part = table[table["side"] == side]
        for verdict, color in VERDICTS.items():
            figure.add_bar(
                **_bars(part, verdict, lying=settings > UPRIGHT),
                name=verdict,
                legendgroup=verdict,
                showlegend=column == 1,
                marker_color=color,
                row=1,
                col=column,
            )
    return _by_setting(figure, settings, len(VERDICTS))


def _bars(part: pd.DataFrame, verdict: str, lying: bool) -> dict[str, Any]:
    """Bars of a verdict's share, one a setting, with their intervals and words."""
    setting, share = ("y", "x") if lying else ("x", "y")
    return {
        setting: part["setting"].to_numpy(),
        share: 100 * part[verdict].to_numpy(),
        f"error_{share}": _errors(part, verdict),
        "orientation": "h" if lying else "v",
        "customdata": part[[f"k_{verdict}", "n", "neurons"]].to_numpy().tolist(),
        "hovertemplate": f"%{{{setting}}}, %{{customdata[2]}} neurons removed<br>{verdict} "
        f"%{{customdata[0]}}/%{{customdata[1]}} = %{{{share}:.1f}} %",
    }


def _by_setting(figure: go.Figure, settings: int, bars: int, legend: int = 1) -> go.Figure:
    """Axes, height and legend of bars by setting.

    Args:
        figure: its bars lie where there are more than ``UPRIGHT`` settings.
        settings: how many there are.
        bars: of each setting in a panel.
        legend: lines that the legend may need, above the titles of the panels.
    """
    figure.update_annotations(font={"color": INK, "size": 13})
    # No name is left out, and all have room.
    names: dict[str, Any] = {"dtick": 1, "automargin": True}
    top = 46 + 28 * legend
    if settings > UPRIGHT:
        figure.update_xaxes(title="answers, %", range=[0, 104])
        figure.update_yaxes(autorange="reversed", **names)
        height = settings * (bars * BAR + BETWEEN)
    else:
        figure.update_xaxes(**names)
        figure.update_yaxes(range=[0, 104])
        figure.update_yaxes(title="answers, %", col=1)
        height = 300
    return styled(figure, top + height + 48).update_layout(
        legend={"xref": "container", "yref": "container", "y": 1, "yanchor": "top"},
        margin={"t": top},
    )


def success_figure(table: pd.DataFrame, names: Mapping[str, str]) -> go.Figure:
    """Attack success on harmful prompts, a row a setting, with k/n and Wilson 95 % intervals.

    Args:
        table: as :func:`analysis.robustness.headline` gives it.
        names: setting -> how it is called; settings without a name are left out.
    """
    harmful = table[table["side"] == "harmful"].set_index("setting")
    shown = [name for name in names if name in harmful.index]
    rows = harmful.loc[shown]
    figure = go.Figure(
        go.Scatter(
            x=100 * rows["success"].to_numpy(dtype=np.float64),
            y=[names[name] for name in shown],
            mode="markers+text",
            text=[f"{row['k_success']:.0f}/{row['n']}" for row in rows.to_dict("records")],
            textposition="top center",
            cliponaxis=False,
            error_x=_errors(rows, "success"),
            marker={
                "size": 11,
                "symbol": ["diamond" if name == "FULL" else "circle" for name in shown],
                "color": [VERMILION if name == "FULL" else BLUE for name in shown],
            },
            customdata=rows[["success_low", "success_high"]].to_numpy(dtype=np.float64) * 100,
            hovertemplate="%{y}: %{text} = %{x:.1f} %, [%{customdata[0]:.1f}, "
            "%{customdata[1]:.1f}]<extra></extra>",
        )
    )
    figure.update_xaxes(title="attack success, %", range=[-2, 102], tickvals=[0, 50, 100])
    figure.update_yaxes(autorange="reversed", automargin=True)
    return styled(figure, 190).update_layout(margin={"t": 12, "b": 42, "l": 8})


def compare_figure(tables: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Several attacks side by side: what complied of the harmful, what of the rest was refused.

    Args:
        tables: name -> table as :func:`analysis.robustness.headline` gives it.
    """
    asked = {side for table in tables.values() for side in table["side"]}
    panels = [panel for panel in PANELS if panel[0] != "over-refusal" or panel[0] in asked]
    titles = [f"{side} prompts:<br>{verdict}" for side, verdict in panels]
    figure = make_subplots(cols=len(panels), shared_yaxes=True, subplot_titles=titles)
    settings = len({setting for table in tables.values() for setting in table["setting"]})
    for column, (side, verdict) in enumerate(panels, start=1):
        for place, (name, table) in enumerate(tables.items()):
            figure.add_bar(
                **_bars(table[table["side"] == side], verdict, lying=settings > UPRIGHT),
                name=html.escape(name),
                legendgroup=str(place),
                showlegend=column == 1,
                marker={
                    "color": SERIES[place % len(SERIES)],
                    "pattern": {"shape": PATTERNS[place % len(PATTERNS)], "solidity": 0.25},
                },
                row=1,
                col=column,
            )
    return _by_setting(figure, settings, len(tables), legend=len(tables))
