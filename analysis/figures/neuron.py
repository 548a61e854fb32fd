"""Figures of one neuron: what it does on each side's prompts."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from analysis.figures.style import BLUE, VERMILION, legend_below, styled

BINS = 40
SIDES = {"harmful": VERMILION, "harmless": BLUE}


def distribution_figure(sides: Mapping[str, Sequence[float]]) -> go.Figure:
    """A neuron's activations on harmful and on harmless prompts, as shares of each side.

    Args:
        sides: ``harmful`` and ``harmless``: the activation on each prompt.
    """
    values = {name: np.asarray(sides[name], dtype=np.float64) for name in SIDES}
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=BINS)
    centres, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    figure = go.Figure()
    for name, color in SIDES.items():
        counts, _ = np.histogram(values[name], bins=edges)
        figure.add_bar(
            x=centres,
            y=100 * counts / max(len(values[name]), 1),
            width=width,
            customdata=counts,
            name=f"{name}: {len(values[name])} prompts, mean {values[name].mean():.3g}",
            opacity=0.72,
            marker={"color": color, "line": {"width": 0}},
            hovertemplate="about %{x:.3g}: %{customdata} " + name + " prompts<extra></extra>",
        )
        figure.add_vline(x=values[name].mean(), line={"color": color, "width": 2, "dash": "dash"})
    figure.update_layout(barmode="overlay")
    figure.update_xaxes(title="activation; dashed: the means")
    figure.update_yaxes(title="prompts of the side, %", rangemode="tozero")
    return legend_below(styled(figure, 320)).update_layout(legend={"y": -0.25}, bargap=0)
