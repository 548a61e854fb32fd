"""The paper's figures 3 to 7 from stored results, with the chance levels that it lacks."""

import html
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.depth import by_depth
from analysis.figures.style import (
    BLUE,
    GREEN,
    INK,
    PATTERNS,
    SEQUENTIAL,
    SERIES,
    VERMILION,
    legend_below,
    styled,
)

CLASS_COLORS = {"core": BLUE, "shared": "#56b4e9", "specific": VERMILION}
BAND = "rgba(125, 136, 148, 0.28)"


def _layers(figure: go.Figure, count: int) -> None:
    """A layer is a whole number."""
    figure.update_xaxes(title="layer", tick0=0, dtick=max(1, -(-count // 16)))


def composition_figure(layers: pd.DataFrame, of: str = "sets") -> go.Figure:
    """Core, shared and specific neurons of each layer (Fig. 3), as shares of the layer's union.

    The dotted line is what chance gives core and shared together.

    Args:
        layers: as :attr:`analysis.overlap.composition.Composition.layers` has them.
        of: what the sets are, in the plural.
    """
    figure = go.Figure()
    for place, (name, color) in enumerate(CLASS_COLORS.items()):
        figure.add_bar(
            x=layers["layer"].to_numpy(),
            y=100 * layers[f"{name}_share"].to_numpy(dtype=np.float64),
            customdata=layers[[name, f"{name}_chance"]].to_numpy().tolist(),
            name={"core": f"core: in all {of}", "shared": "shared: in several"}.get(
                name, "specific: in one"
            ),
            marker={"color": color, "pattern": {"shape": PATTERNS[place], "solidity": 0.2}},
            hovertemplate="layer %{x}, " + name + ": %{customdata[0]} neurons = %{y:.1f} %"
            "<br>by chance %{customdata[1]:,.1f} neurons<extra></extra>",
        )
    chance = {name: layers[f"{name}_chance"].to_numpy(dtype=np.float64) for name in CLASS_COLORS}
    union = np.asarray(sum(chance.values()))
    several = chance["core"] + chance["shared"]
    figure.add_scatter(
        x=layers["layer"].to_numpy(),
        y=100 * np.divide(several, union, out=np.full(len(union), np.nan), where=union > 0),
        mode="lines",
        name="core and shared by chance",
        line={"color": INK, "dash": "dot", "width": 3},
        hovertemplate="layer %{x}, by chance: %{y:.1f} %<extra></extra>",
    )
    figure.update_layout(barmode="stack")
    _layers(figure, len(layers))
    figure.update_yaxes(title="neurons of the layer in any, %", range=[0, 104])
    return legend_below(styled(figure, 400))


def depth_figure(table: pd.DataFrame) -> go.Figure:
    """Fraction of neurons chosen against normalised depth, a row a model (Fig. 4).

    Args:
        table: as :func:`analysis.depth.depth_table` gives it.
    """
    wide = by_depth(table)
    values = 100 * wide.to_numpy()
    figure = go.Figure(
        go.Heatmap(
            x=wide.columns.to_numpy(dtype=np.float64),
            y=[html.escape(str(name)) for name in wide.index],
            z=values,
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=float(np.nanmax(values)),
            colorbar={"title": {"text": "%"}, "thickness": 10, "outlinewidth": 0},
            hovertemplate="%{y}<br>depth %{x:.2f}: %{z:.2f} %<extra></extra>",
        )
    )
    figure.update_xaxes(title="depth: 0 the first layer, 1 the last", range=[0, 1])
    figure.update_yaxes(autorange="reversed", automargin=True)
    return styled(figure, 160 + 44 * len(wide))


def kway_figure(table: pd.DataFrame, of: str = "sets") -> go.Figure:
    """Overlap of any K sets against K (Fig. 5): mean, one deviation either way, chance.

    Args:
        table: as :func:`analysis.overlap.kway.kway_table` gives it.
        of: what the sets are, in the plural.
    """
    k, ratio = table["k"].to_numpy(), 100 * table["ratio"].to_numpy(dtype=np.float64)
    spread = 100 * np.sqrt(table["variance"].to_numpy(dtype=np.float64))
    figure = go.Figure()
    figure.add_scatter(
        x=np.concatenate([k, k[::-1]]),
        y=np.concatenate([ratio + spread, (ratio - spread)[::-1]]),
        mode="lines",
        fill="toself",
        fillcolor="rgba(0, 114, 178, 0.18)",
        line={"width": 0},
        hoverinfo="skip",
        name="one deviation over combinations",
    )
    figure.add_scatter(
        x=k,
        y=ratio,
        mode="lines+markers",
        name="in all K of those in any",
        line={"color": BLUE, "width": 2},
        customdata=table[["drawn", "combinations", "both"]].to_numpy().tolist(),
        hovertemplate="K = %{x}: %{y:.2f} %, %{customdata[2]:.1f} neurons on the mean<br>"
        "%{customdata[0]} of %{customdata[1]} combinations<extra></extra>",
    )
    figure.add_scatter(
        x=k,
        y=100 * table["ratio_chance"].to_numpy(dtype=np.float64),
        mode="lines+markers",
        name="by chance",
        line={"color": INK, "dash": "dot", "width": 2},
        hovertemplate="K = %{x}, by chance: %{y:.3g} %<extra></extra>",
    )
    figure.update_xaxes(title=f"K, how many {of}", dtick=1)
    figure.update_yaxes(title="overlap ratio, %", rangemode="tozero")
    return legend_below(styled(figure, 380))


def data_scale_figure(table: pd.DataFrame) -> go.Figure:
    """Attack success against the share of the alignment data (Fig. 6), with intervals.

    Args:
        table: one row a share and setting: ``data`` (0 to 1), ``setting``, ``success``,
            ``success_low``, ``success_high``, ``k_success``, ``n``.
    """
    figure = go.Figure()
    for place, (name, part) in enumerate(table.groupby("setting", sort=False)):
        rows = part.sort_values("data")
        share = 100 * rows["success"].to_numpy(dtype=np.float64)
        figure.add_scatter(
            x=100 * rows["data"].to_numpy(dtype=np.float64),
            y=share,
            mode="lines+markers",
            name=html.escape(str(name)),
            line={"color": SERIES[place % len(SERIES)], "width": 2},
            marker={"symbol": place, "size": 8},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": 100 * rows["success_high"].to_numpy(dtype=np.float64) - share,
                "arrayminus": share - 100 * rows["success_low"].to_numpy(dtype=np.float64),
                "thickness": 1.3,
                "width": 3,
            },
            customdata=rows[["k_success", "n"]].to_numpy().tolist(),
            hovertemplate="%{x:.0f} % of the data: %{customdata[0]}/%{customdata[1]} = %{y:.1f} %",
        )
    figure.update_xaxes(title="alignment data used, %")
    figure.update_yaxes(title="attack success, %", range=[0, 104])
    return legend_below(styled(figure, 400))


def method_overlap_figure(rows: pd.DataFrame, names: tuple[str, str]) -> go.Figure:
    """Jaccard index of two sets in each layer (Fig. 7), and what chance stays within.

    Args:
        rows: as :func:`analysis.overlap.pairs.overlap_by_layer` gives them.
        names: of the sets.
    """
    layer = rows["layer"].to_numpy(dtype=np.float64)
    low, high = (100 * rows[f"jaccard_{end}"].to_numpy(dtype=np.float64) for end in ("low", "high"))
    figure = go.Figure()
    figure.add_bar(
        x=layer,
        y=100 * rows["jaccard"].to_numpy(dtype=np.float64),
        name="neurons in both, of those in either",
        marker_color=GREEN,
        customdata=rows[["both", "first", "second", "p_more"]].to_numpy().tolist(),
        hovertemplate="layer %{x}: %{customdata[0]} in both of %{customdata[1]} and "
        "%{customdata[2]}<br>%{y:.1f} %, p %{customdata[3]:.2g}<extra></extra>",
    )
    figure.add_bar(
        x=layer,
        y=high - low,
        base=low,
        width=0.98,
        name="95 of 100 random draws",
        marker={"color": BAND, "line": {"width": 0}},
        hoverinfo="skip",
    )
    figure.update_layout(
        barmode="overlay",
        title={"text": html.escape(f"{names[0]} and {names[1]}"), "font": {"size": 13}},
    )
    _layers(figure, len(rows))
    figure.update_yaxes(title="Jaccard index, %", rangemode="tozero")
    return legend_below(styled(figure, 360))


def redistribution_figure(
    layers: pd.DataFrame, names: tuple[str, str] = ("before", "after")
) -> go.Figure:
    """Share of the safety mass in each layer, before and after alignment.

    Args:
        layers: as :attr:`analysis.redistribution.Redistribution.layers` has them.
        names: how the two are called.
    """
    figure = go.Figure()
    for place, (when, color) in enumerate((("before", BLUE), ("after", VERMILION))):
        figure.add_bar(
            x=layers["layer"].to_numpy(),
            y=100 * layers[f"share_{when}"].to_numpy(dtype=np.float64),
            name=names[place],
            marker={"color": color, "pattern": {"shape": PATTERNS[place], "solidity": 0.2}},
            customdata=layers[[f"neurons_{when}", f"mass_{when}"]].to_numpy().tolist(),
            hovertemplate="layer %{x}: %{y:.1f} % of the mass, %{customdata[0]} neurons"
            "<extra>" + names[place] + "</extra>",
        )
    _layers(figure, len(layers))
    figure.update_yaxes(title="share of the safety mass, %", rangemode="tozero")
    return legend_below(styled(figure, 340))


def refusal_curves_figure(curves: dict[str, pd.DataFrame]) -> go.Figure:
    """Refusals against how many neurons were removed, with Wilson 95 % intervals.

    Args:
        curves: name -> as :func:`analysis.redistribution.refusal_curve` gives it.
    """
    figure = go.Figure()
    for place, (name, curve) in enumerate(curves.items()):
        share = 100 * curve["refused"].to_numpy(dtype=np.float64)
        errors: dict[str, Any] = {"type": "data", "symmetric": False, "thickness": 1.3, "width": 3}
        errors["array"] = 100 * curve["refused_high"].to_numpy(dtype=np.float64) - share
        errors["arrayminus"] = share - 100 * curve["refused_low"].to_numpy(dtype=np.float64)
        figure.add_scatter(
            x=curve["neurons"].to_numpy(dtype=np.float64),
            y=share,
            mode="lines+markers",
            name=html.escape(name),
            line={"color": SERIES[place % len(SERIES)], "width": 2},
            marker={"symbol": place, "size": 7},
            error_y=errors,
            customdata=curve[["k_refused", "n"]].to_numpy().tolist(),
            hovertemplate="%{x} neurons removed: %{customdata[0]}/%{customdata[1]} refused",
        )
    figure.update_xaxes(title="neurons removed", rangemode="tozero")
    figure.update_yaxes(title="harmful prompts refused, %", range=[0, 104])
    return legend_below(styled(figure, 380))
