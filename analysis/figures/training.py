"""Curves of a training run and of what is held out while it goes."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.figures.style import BLUE, GREEN, INK, VERMILION, styled


class Curve(NamedTuple):
    """One line over the steps of a run."""

    name: str
    values: "pd.Series[float]"
    color: str
    dash: str = "solid"


def training_figures(events: pd.DataFrame) -> dict[str, go.Figure]:
    """Loss, rewards and accuracy over the steps of a training run, a figure each.

    Apart, so that a page can put them beside or below each other.

    Args:
        events: one row a step; columns ``step``, ``loss``, and where they were logged
            ``margin``, ``chosen``, ``rejected`` (rewards: beta times the log-ratio to the
            reference) and ``accuracy`` (share of pairs whose chosen side is preferred).
    """
    rewards = (("margin", GREEN, "solid"), ("chosen", BLUE, "dot"), ("rejected", VERMILION, "dash"))
    steps = events["step"]
    losses = [Curve("loss", events["loss"], BLUE)] if "loss" in events else []
    accuracies = (
        [Curve("accuracy", 100 * events["accuracy"], GREEN)] if "accuracy" in events else []
    )
    return {
        "loss": _curves("loss", steps, losses),
        "reward": _curves(
            "reward", steps, [Curve(n, events[n], c, d) for n, c, d in rewards if n in events]
        ),
        "preferred": _curves("preferred, %", steps, accuracies, percent=True),
    }


def held_out_figures(looks: pd.DataFrame) -> dict[str, go.Figure]:
    """Margin, divergence and refusals of what is held out over the steps, a figure each.

    Args:
        looks: one row a look; columns ``step``, ``margin``, ``kl``, ``refused_harmful`` of
            ``harmful`` prompts and ``refused_harmless`` of ``harmless`` ones.
    """
    refusals = []
    for side, color in (("harmful", BLUE), ("harmless", VERMILION)):
        asked = looks[side].where(looks[side] > 0)
        refusals.append(Curve(side, 100 * looks[f"refused_{side}"] / asked, color))
    steps = looks["step"]
    return {
        "margin": _curves("held-out margin", steps, [Curve("margin", looks["margin"], GREEN)]),
        "divergence": _curves("KL, nats a token", steps, [Curve("KL", looks["kl"], BLUE)]),
        "refused": _curves("refused, %", steps, refusals, percent=True),
    }


def _curves(
    title: str, steps: "pd.Series[int]", curves: list[Curve], percent: bool = False
) -> go.Figure:
    figure = go.Figure()
    for curve in curves:
        figure.add_scatter(
            x=steps.to_numpy(),
            y=curve.values.to_numpy(dtype=np.float64),
            mode="lines+markers" if len(steps) < 40 else "lines",
            name=curve.name,
            showlegend=len(curves) > 1,
            line={"color": curve.color, "width": 2, "dash": curve.dash},
            marker={"size": 4},
            hovertemplate="step %{x}: %{y:.4g}<extra>" + curve.name + "</extra>",
        )
    figure.update_xaxes(title="step")
    if percent:
        figure.update_yaxes(range=[0, 104])
    styled(figure, 300).update_layout(
        title={"text": title, "font": {"color": INK, "size": 13}, "x": 0.02, "y": 0.96},
        legend={"y": -0.28, "yanchor": "top"},
        # Room for a legend in all of them, so that their axes stand in line.
        margin={"b": 76},
    )
    return figure
