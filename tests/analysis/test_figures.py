"""Figures: every point and bar against the table it was drawn from."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis.figures import (
    attack_figure,
    compare_figure,
    layer_fraction_figure,
    safety_map_figure,
    score_histogram,
)
from analysis.figures.matrix import overlap_matrix_figure
from analysis.figures.training import held_out_figures, training_figures
from analysis.overlap.pairs import overlap_table
from analysis.safety_map import Window
from analysis.scores.table import score_table
from analysis.statistics import wilson
from toolkit.capture.moments import Moments
from toolkit.neurons import NeuronSet

WIDTHS = [50, 0, 30]


@pytest.fixture
def scores() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    sides = [
        [Moments(9, rng.normal(size=w), rng.uniform(1, 2, size=w)) for w in WIDTHS]
        for _ in range(2)
    ]
    return score_table(*sides)


@pytest.fixture
def neurons() -> NeuronSet:
    return NeuronSet(WIDTHS, {0: [3, 7], 2: [0, 29]})


def verdict_table(shares: dict[str, tuple[int, int]]) -> pd.DataFrame:
    """Rows as robustness.headline has them: setting -> (complied, refused) of 20, both sides."""
    rows = []
    for side in ("harmful", "harmless"):
        for setting, (complied, refused) in shares.items():
            row: dict[str, object] = {"setting": setting, "seed": None, "neurons": 4}
            row |= {"side": side, "n": 20}
            counts = {"complied": complied, "refused": refused}
            counts["degenerate"] = 20 - complied - refused
            for name, k in counts.items():
                p = wilson(k, 20)
                row |= {f"k_{name}": k, name: p.share, f"{name}_low": p.low}
                row |= {f"{name}_high": p.high}
            rows.append(row)
    return pd.DataFrame(rows)


def test_the_map_draws_every_neuron_where_it_is(scores: pd.DataFrame, neurons: NeuronSet) -> None:
    rest, selected, points, *strips = safety_map_figure(scores, neurons, "es").data
    assert len(points.x) == sum(WIDTHS)
    for x, y, (neuron, value) in zip(points.x, points.y, points.customdata, strict=True):
        line = scores[(scores["layer"] == y) & (scores["neuron"] == x)].iloc[0]
        assert (neuron, value) == (x, pytest.approx(line["es"], rel=1e-6))
        strong, faint = (selected, rest) if (y, x) in neurons else (rest, selected)
        assert np.isnan(faint.z[y][x])
        limit = safety_map_figure(scores, neurons, "es").layout.coloraxis.cmax
        assert strong.z[y][x] == pytest.approx(np.clip(line["es"], -limit, limit), rel=1e-5)
    fraction, mass = strips
    assert list(fraction.x) == pytest.approx([4.0, 0.0, 100 * 2 / 30])
    chosen = scores[[(row.layer, row.neuron) in neurons for row in scores.itertuples()]]
    for layer, total in zip(mass.y, mass.x, strict=True):
        part = chosen[chosen["layer"] == layer]["es"]
        assert total == pytest.approx(part[part > 0].sum())


def test_map_colours_have_zero_in_the_middle(scores: pd.DataFrame, neurons: NeuronSet) -> None:
    axis = safety_map_figure(scores, neurons).layout.coloraxis
    assert axis.cmin == -axis.cmax < 0
    assert axis.colorscale[1][0] == 0.5


def test_an_infinite_effect_is_drawn_at_the_end(scores: pd.DataFrame, neurons: NeuronSet) -> None:
    scores.loc[3, "es"] = np.inf
    figure = safety_map_figure(scores, neurons, "es")
    assert figure.data[1].z[0][3] == pytest.approx(figure.layout.coloraxis.cmax)


@pytest.mark.parametrize("window", [None, Window.of_layer([28_672] * 80, 7)], ids=["all", "layer"])
def test_a_large_map_stays_small(window: Window | None) -> None:
    width, layers = 28_672, 80
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"sas": rng.normal(size=width * layers)})
    chosen = NeuronSet([width] * layers, {i: range(300) for i in range(layers)})
    figure = safety_map_figure(frame, chosen, window=window)
    assert len(figure.to_json()) < 1_000_000


def test_the_chosen_neuron_is_ringed(scores: pd.DataFrame, neurons: NeuronSet) -> None:
    ring = next(
        trace
        for trace in safety_map_figure(scores, neurons, chosen=(2, 5)).data
        if trace.type == "scatter"
    )
    assert (list(ring.y), list(ring.x)) == ([2], [5])


def test_names_of_a_maps_axes_keep_clear_of_the_ticks(
    scores: pd.DataFrame, neurons: NeuronSet
) -> None:
    figure = safety_map_figure(scores, neurons)
    named = {note.xref: (note.text, note.yshift) for note in figure.layout.annotations}
    assert named == {
        "x domain": ("neuron", -36),
        "x2 domain": ("%", -36),
        "x3 domain": ("mass", -36),
    }
    assert figure.layout.margin.b > 36 + 13 / 2
    assert figure.layout.xaxis.title.text is None


def test_names_of_a_matrix_differ_where_they_begin_or_end_alike() -> None:
    ends = ("study · es+sas · 410 neurons · aaaaaaaa", "study · es+sas · 410 neurons · bbbbbbbb")
    sets = {
        **dict.fromkeys(ends, NeuronSet([3000], {0: range(1500)})),
        f"es of {ends[0]}": NeuronSet([3000], {0: [2999]}),
    }
    figure = overlap_matrix_figure(overlap_table(sets), list(sets))
    labels = [label.partition(". ")[2] for label in figure.layout.yaxis.ticktext]
    assert len(set(labels)) == 3
    [squares] = figure.data
    assert squares.text[0, 1] == "<b>100.0 %</b><br>33.3 %"
    assert "by chance 750.0 neurons" in squares.customdata[0, 1]
    assert "1,500 in both of 1,500 and 1,500" in squares.customdata[0, 1]


def test_fraction_by_layer(neurons: NeuronSet) -> None:
    bars = layer_fraction_figure(neurons).data[0]
    assert list(bars.y) == pytest.approx([4.0, 0.0, 100 * 2 / 30])


def test_histogram_counts_every_finite_score(scores: pd.DataFrame) -> None:
    scores.loc[0, "es"] = np.inf
    figure = score_histogram(scores, "es", 1.5)
    assert sum(figure.data[0].y) == len(scores) - 1
    assert figure.layout.shapes[0].x0 == 1.5


def test_attack_bars_are_the_shares_with_their_intervals() -> None:
    table = verdict_table({"ORI": (1, 19), "FULL": (15, 3)})
    bars = {(t.name, t.xaxis): t for t in attack_figure(table).data}
    assert set(bars) == {(v, x) for v in ("complied", "refused", "degenerate") for x in ("x", "x2")}
    full = wilson(15, 20)
    complied = bars["complied", "x"]
    assert list(complied.x) == ["ORI", "FULL"]
    assert list(complied.y) == pytest.approx([5.0, 75.0])
    assert complied.error_y.array[1] == pytest.approx(100 * (full.high - 0.75))
    assert complied.error_y.arrayminus[1] == pytest.approx(100 * (0.75 - full.low))
    assert list(bars["degenerate", "x2"].y) == pytest.approx([0.0, 10.0])


def test_over_refusal_has_a_panel_where_it_was_asked() -> None:
    table = verdict_table({"ORI": (1, 19), "FULL": (15, 3)})
    borderline = table[table["side"] == "harmless"].assign(side="over-refusal")
    more = pd.concat([table, borderline], ignore_index=True)
    assert {t.xaxis for t in attack_figure(table).data} == {"x", "x2"}
    bars = {(t.name, t.xaxis): t for t in attack_figure(more).data}
    assert list(bars["refused", "x3"].y) == pytest.approx([95.0, 15.0])
    assert {t.xaxis for t in compare_figure({"a": table, "b": table}).data} == {"x", "x2"}
    drawn = [(t.name, list(t.y)) for t in compare_figure({"a": table, "b": more}).data]
    assert drawn[4:] == [("a", []), ("b", pytest.approx([95.0, 15.0]))]


def test_many_settings_have_a_row_each() -> None:
    names = ["ORI", "RANDOM-ACTIVATION", *(f"SWEEP {share}%" for share in range(1, 21))]
    table = verdict_table(dict.fromkeys(names, (1, 19)))
    few, many = attack_figure(table[table["setting"].isin(names[:6])]), attack_figure(table)
    assert {trace.orientation for trace in few.data} == {"v"}
    bars = {(t.name, t.xaxis): t for t in many.data}
    complied = bars["complied", "x"]
    assert (complied.orientation, list(complied.y)) == ("h", names)
    assert list(complied.x) == pytest.approx([5.0] * len(names))
    assert complied.error_x.array[0] == pytest.approx(100 * (wilson(1, 20).high - 0.05))
    for figure in (many, compare_figure({"a": table, "b": table})):
        # Every name is drawn, in full, and each row has the height of its bars.
        assert (figure.layout.yaxis.dtick, figure.layout.yaxis.automargin) == (1, True)
        assert figure.layout.height > 20 * len(names)
        assert (figure.layout.legend.yref, figure.layout.legend.y) == ("container", 1)


def test_comparison_escapes_names() -> None:
    table = verdict_table({"ORI": (1, 19), "FULL": (15, 3)})
    after = verdict_table({"ORI": (0, 20), "FULL": (5, 15)})
    figure = compare_figure({"<b>before</b>": table, "after": after})
    assert figure.data[0].name == "&lt;b&gt;before&lt;/b&gt;"
    assert list(figure.data[1].y) == pytest.approx([0.0, 25.0])
    assert list(figure.data[3].y) == pytest.approx([100.0, 75.0])


def test_training_curves_draw_what_was_logged() -> None:
    steps = pd.DataFrame({"step": [1, 2], "loss": [0.7, 0.5], "accuracy": [0.5, 1.0]})
    figures = training_figures(steps)
    assert list(figures) == ["loss", "reward", "preferred"]
    curves = {trace.name: list(trace.y) for f in figures.values() for trace in f.data}
    assert curves == {"loss": [0.7, 0.5], "accuracy": [50.0, 100.0]}
    for figure in figures.values():
        json.loads(figure.to_json())


def test_held_out_looks() -> None:
    looks = pd.DataFrame(
        {
            "step": [0, 8],
            "margin": [0.0, 1.5],
            "kl": [0.0, 0.02],
            "refused_harmful": [4, 8],
            "harmful": [16, 16],
            "refused_harmless": [0, 1],
            "harmless": [4, 4],
        }
    )
    figures = held_out_figures(looks)
    curves = {trace.name: list(trace.y) for f in figures.values() for trace in f.data}
    assert curves == {
        "margin": [0.0, 1.5],
        "KL": [0.0, 0.02],
        "harmful": [25.0, 50.0],
        "harmless": [0.0, 25.0],
    }
    for figure in figures.values():
        json.loads(figure.to_json())
