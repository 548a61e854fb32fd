"""How all figures look.

Blue and vermilion (Okabe-Ito) tell apart in every common colour blindness and in
print; scores diverge from zero in the middle. Backgrounds are transparent, and ink is
a grey that reads on white and on near-black alike.
"""

import plotly.graph_objects as go

INK, GRID = "#7d8894", "rgba(125, 136, 148, 0.22)"
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
VERDICTS = {"complied": VERMILION, "refused": BLUE, "degenerate": "#a7afb8"}
# What prompts are shown, and the verdict on them that is to be told apart between attacks.
PANELS = (("harmful", "complied"), ("harmless", "refused"), ("over-refusal", "refused"))
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
PATTERNS = ("", "/", "x", ".", "\\", "+")
DIVERGING = [[0, "#0072b2"], [0.5, "#c9ced4"], [1, "#d55e00"]]
# From nothing, which is the paper, to all; text on it stays readable to the end.
SEQUENTIAL = [[0, "rgba(0, 114, 178, 0.04)"], [1, "rgba(0, 114, 178, 0.62)"]]
NAMES = {
    "es": "ES (Cohen's d)",
    "sas": "SAS (z in its layer)",
    "delta": "shift of the mean",
    "t": "t (Student's)",
    "mean_harmful": "mean, harmful",
    "mean_harmless": "mean, harmless",
    "pooled_std": "pooled deviation",
}


def styled(figure: go.Figure, height: int) -> go.Figure:
    """Give a figure its height, its fonts and its grid."""
    figure.update_layout(
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"l": 56, "r": 16, "t": 44, "b": 48},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.06, "x": 0, "title": None},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": BLUE},
        hoverlabel={"font": {"family": "system-ui, sans-serif"}},
        bargap=0.25,
    )
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID}
    figure.update_xaxes(axis, title={"font": {"size": 13}, "standoff": 6})
    figure.update_yaxes(axis, title={"font": {"size": 13}, "standoff": 6})
    return figure


def legend_below(figure: go.Figure) -> go.Figure:
    """Panel titles stand above, so the legend goes below."""
    figure.update_layout(legend={"y": -0.14, "yanchor": "top"})
    return figure
