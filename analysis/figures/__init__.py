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
    GREEN,
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

__all__ = [
    "attack_figure",
    "compare_figure",
    "held_out_figure",
    "histogram_figure",
    "layer_fraction_figure",
    "safety_map_figure",
    "score_bins",
    "score_histogram",
    "success_figure",
    "training_figure",
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
    return legend_below(styled(figure, 400))


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
    figure.update_xaxes(title="attack success, %", range=[-2, 102], nticks=6)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return styled(figure, 190).update_layout(margin={"t": 12, "b": 42, "l": 8})


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
    return legend_below(styled(figure, 400))


def training_figure(events: pd.DataFrame) -> go.Figure:
    """Loss, rewards and accuracy over the steps of a training run.

    Args:
        events: one row a step; columns ``step``, ``loss``, and where they were logged
            ``margin``, ``chosen``, ``rejected`` (rewards: beta times the log-ratio to the
            reference) and ``accuracy`` (share of pairs whose chosen side is preferred).
    """
    titles = ("loss", "reward", "preferred, %")
    figure = make_subplots(cols=3, subplot_titles=titles, horizontal_spacing=0.08)
    curves = [("loss", 1, BLUE, "solid", 1.0), ("margin", 2, GREEN, "solid", 1.0)]
    curves += [("chosen", 2, BLUE, "dot", 1.0), ("rejected", 2, VERMILION, "dash", 1.0)]
    curves += [("accuracy", 3, GREEN, "solid", 100.0)]
    for name, column, color, dash, factor in curves:
        if name not in events:
            continue
        figure.add_scatter(
            x=events["step"].to_numpy(),
            y=factor * events[name].to_numpy(dtype=np.float64),
            mode="lines+markers" if len(events) < 40 else "lines",
            name=name,
            showlegend=column == 2,
            line={"color": color, "width": 2, "dash": dash},
            marker={"size": 4},
            hovertemplate="step %{x}: %{y:.4g}<extra>" + name + "</extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(title="step")
    figure.update_yaxes(range=[0, 104], col=3)
    figure.update_annotations(font={"color": INK, "size": 13})
    return legend_below(styled(figure, 330)).update_layout(legend={"y": -0.3})


def held_out_figure(looks: pd.DataFrame) -> go.Figure:
    """Margin, divergence and refusals of what is held out, over the steps of training.

    Args:
        looks: one row a look; columns ``step``, ``margin``, ``kl``, ``refused_harmful`` of
            ``harmful`` prompts and ``refused_harmless`` of ``harmless`` ones.
    """
    titles = ("held-out margin", "KL, nats a token", "refused, %")
    figure = make_subplots(cols=3, subplot_titles=titles, horizontal_spacing=0.08)
    curves = [("margin", 1, GREEN, looks["margin"]), ("KL", 2, BLUE, looks["kl"])]
    for side, color in (("harmful", BLUE), ("harmless", VERMILION)):
        asked = looks[side].where(looks[side] > 0)
        curves.append((side, 3, color, 100 * looks[f"refused_{side}"] / asked))
    for name, column, color, values in curves:
        figure.add_scatter(
            x=looks["step"].to_numpy(),
            y=values.to_numpy(dtype=np.float64),
            mode="lines+markers",
            name=name,
            showlegend=column == 3,
            line={"color": color, "width": 2},
            marker={"size": 5},
            hovertemplate="step %{x}: %{y:.4g}<extra>" + name + "</extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(title="step")
    figure.update_yaxes(range=[0, 104], col=3)
    figure.update_annotations(font={"color": INK, "size": 13})
    return legend_below(styled(figure, 330)).update_layout(legend={"y": -0.3})
