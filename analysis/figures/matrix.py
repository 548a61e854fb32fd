"""Every pair of several sets in one square: how far they agree, and chance beneath."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.figures.style import INK, styled

# Letters of a name on an axis, from its beginning and its end: names may differ in either.
HEAD, TAIL = 9, 12
# So faint that ink has its contrast on every square.
TINT = [[0, "rgba(0, 114, 178, 0.03)"], [1, "rgba(0, 114, 178, 0.36)"]]


def overlap_matrix_figure(pairs: pd.DataFrame, names: Sequence[str]) -> go.Figure:
    """Jaccard index of each pair, in per cent, with its chance level in the same square.

    Args:
        pairs: as :func:`analysis.overlap.pairs.overlap_table` gives it, over the whole model.
        names: of the sets, in the order of the axes.
    """
    place = {name: i for i, name in enumerate(names)}
    size = len(names)
    values = np.full((size, size), np.nan)
    words = np.full((size, size), "", dtype=object)
    told = np.full((size, size), "", dtype=object)
    for row in pairs[pairs["layer"].isna()].to_dict("records"):
        i, j = place[row["a"]], place[row["b"]]
        percent, chance = 100 * row["jaccard"], 100 * row["jaccard_chance"]
        about = (
            f"{html.escape(row['a'])}<br>{html.escape(row['b'])}<br>{row['both']:,} in both of "
            f"{row['first']:,} and {row['second']:,}; by chance {row['both_chance']:,.1f} neurons"
            f"<br>overlap coefficient {row['overlap']:.3f}, p {row['p_more']:.2g}"
        )
        for a, b in ((i, j), (j, i)):
            values[a, b] = percent
            words[a, b] = f"<b>{_percent(percent)}</b><br>{_percent(chance)}"
            told[a, b] = about
    labels = [f"{i + 1}. {html.escape(_short(name))}" for i, name in enumerate(names)]
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    figure = go.Figure(
        go.Heatmap(
            x=list(range(size)),
            y=list(range(size)),
            z=values,
            coloraxis="coloraxis",
            text=words,
            texttemplate="%{text}",
            textfont={"size": 12, "color": INK},
            customdata=told,
            hovertemplate="%{customdata}<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    figure.update_layout(
        coloraxis={"colorscale": TINT, "cmin": 0, "cmax": top or 1.0, "showscale": False}
    )
    ticks = {"tickvals": list(range(size)), "showgrid": False}
    figure.update_xaxes(ticktext=[str(i + 1) for i in range(size)], side="top", **ticks)
    figure.update_yaxes(ticktext=labels, autorange="reversed", automargin=True, **ticks)
    return styled(figure, 120 + 62 * size)


def _short(name: str) -> str:
    return name if len(name) <= HEAD + TAIL + 1 else f"{name[:HEAD]}…{name[-TAIL:]}"


def _percent(value: float) -> str:
    return "&lt;0.1 %" if 0 < value < 0.05 else f"{value:.1f} %"
