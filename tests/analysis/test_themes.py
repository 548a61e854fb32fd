"""Light and dark paper: contrast as WCAG measures it, and scales seen with colour blindness."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go
import pytest

from analysis.figures import layer_fraction_figure as by_layer
from analysis.figures import safety_map_figure
from analysis.figures.style import BLUE, GREEN, INK, SERIES, VERDICTS, VERMILION
from analysis.figures.themes import DARK, LIGHT, Paper, on_paper
from app.dashboard.theme import THEME
from toolkit.neurons import NeuronSet

Array = npt.NDArray[np.float64]
PAPERS = {"light": LIGHT, "dark": DARK}
# Full dichromacy in linear RGB (Machado, Oliveira and Fernandes 2009, Table 1).
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(color: str) -> Array:
    """Linear RGB of #rrggbb (IEC 61966-2-1)."""
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    return float(linear(color) @ np.array([0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def lab(color: str, blindness: str) -> Array:
    """CIELAB of a colour as somebody with that blindness sees it."""
    seen = np.clip(BLINDNESS[blindness] @ linear(color), 0, 1)
    ratio = TO_XYZ @ seen / (TO_XYZ @ np.ones(3))
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one: str, other: str, blindness: str = "none") -> float:
    """Delta E (CIE 1976); 2.3 is just noticeable."""
    return float(np.linalg.norm(lab(one, blindness) - lab(other, blindness)))


def test_the_measures_are_the_standards() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)
    assert lab("#ffffff", "none") == pytest.approx([100, 0, 0], abs=1e-6)
    # Greys look the same to everybody: the rows of each matrix sum to one.
    for matrix in BLINDNESS.values():
        assert matrix.sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("side", PAPERS)
def test_text_and_marks_are_seen(side: str) -> None:
    paper = PAPERS[side]
    theme = {name.rpartition(".")[2]: v for name, v in THEME.items() if f".{side}." in name}
    assert theme["backgroundColor"] == paper.background
    for back in ("backgroundColor", "secondaryBackgroundColor", "codeBackgroundColor"):
        assert contrast(theme["textColor"], theme[back]) >= 7
        for words in ("linkColor", "codeTextColor", *(n for n in theme if n.endswith("TextColor"))):
            assert contrast(theme[words], theme[back]) >= 4.5, (words, back)
    # White on a pressed button, and the button on the page.
    assert contrast("#ffffff", theme["primaryColor"]) >= 4
    assert contrast(theme["primaryColor"], paper.background) >= 3
    assert contrast(paper.ink, paper.background) >= 4.5
    for color in (BLUE, VERMILION, GREEN, *VERDICTS.values()):
        assert contrast(paper.color(color), paper.background) >= 3, color


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize("side", PAPERS)
def test_colours_differ_for_everybody(side: str, blindness: str) -> None:
    paper = PAPERS[side]
    low, zero, high = (str(color) for _, color in paper.diverging)
    assert difference(low, high, blindness) > 40
    assert min(difference(zero, end, blindness) for end in (low, high)) > 20
    three = [paper.color(color) for color in VERDICTS.values()]
    for place, color in enumerate(three):
        for other in three[:place]:
            assert difference(color, other, blindness) > 15


@pytest.mark.parametrize("side", PAPERS)
def test_zero_is_nearest_to_the_paper(side: str) -> None:
    paper = PAPERS[side]
    low, zero, high = (str(color) for _, color in paper.diverging)
    ends = min(contrast(end, paper.background) for end in (low, high))
    assert contrast(zero, paper.background) < ends
    assert [place for place, _ in paper.diverging] == [0.0, 0.5, 1.0]


def every_color(value: object) -> set[str]:
    if isinstance(value, dict):
        return {c for key, v in value.items() if key != "colorway" for c in every_color(v)}
    if isinstance(value, list | tuple):
        return {c for part in value for c in every_color(part)}
    return {value} if isinstance(value, str) and value.startswith(("#", "rgba(1")) else set()


@pytest.mark.parametrize("side", PAPERS)
def test_a_figure_keeps_no_ink_that_the_paper_swaps(side: str) -> None:
    paper = PAPERS[side]
    widths = [4, 4]
    neurons = NeuronSet(widths, {0: [1]})
    index = [(layer, n) for layer in range(2) for n in range(4)]
    scores = pd.DataFrame(index, columns=["layer", "neuron"])
    for name in ("es", "sas", "delta"):
        scores[name] = np.linspace(-1, 1, 8)
    for made in (safety_map_figure(scores, neurons, "sas", (0, 1)), by_layer(neurons)):
        before = [None if t.x is None else list(t.x) for t in made.data]
        drawn = on_paper(made, paper)
        assert drawn is made
        layout = drawn.to_plotly_json()["layout"]
        layout.pop("template")
        used = every_color([trace.to_plotly_json() for trace in drawn.data]) | every_color(layout)
        assert not used & {INK, *paper.swap}
        assert drawn.layout.font.color == paper.ink
        assert [None if t.x is None else list(t.x) for t in drawn.data] == before
    drawn = on_paper(safety_map_figure(scores, neurons), paper)
    assert [list(stop) for stop in drawn.layout.coloraxis.colorscale] == paper.diverging


def test_other_colours_stay() -> None:
    figure = go.Figure(go.Scatter(x=[1], y=[1], marker={"color": SERIES[3]}))
    assert on_paper(figure, DARK).data[0].marker.color == SERIES[3]
    plain = Paper("#ffffff", "#000000", "#eeeeee", "#dddddd")
    assert plain.color(BLUE) == BLUE
