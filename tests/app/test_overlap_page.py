"""The Overlap page: pairs with chance, K of them, composition, and scores."""

import pytest

from analysis.mask_library import cards, keep
from analysis.overlap.pairs import pair_overlap
from tests.app.test_pages import WIDTHS, fill, opened, texts
from tests.masks import make_mask
from toolkit.masks import read_mask
from toolkit.neurons import NeuronSet


def test_two_masks_and_what_chance_gives() -> None:
    study, _ = fill()
    mask = read_mask(study.file("mask.json"))
    other = NeuronSet(WIDTHS, {0: range(12), 1: range(5)})
    keep(make_mask(other))
    test = opened("overlap")
    pairs = next(frame.value for frame in test.dataframe if "jaccard" in frame.value)
    found, _ = pair_overlap(other, mask.neuron_set())
    assert pairs["both"].tolist()[0] == found.both
    assert pairs["jaccard"].tolist()[0] == pytest.approx(found.jaccard)
    assert pairs["jaccard_chance"].tolist()[0] == pytest.approx(found.jaccard_chance)


def test_three_of_them_have_a_curve_and_a_composition() -> None:
    study, _ = fill()
    name = read_mask(study.file("mask.json")).sha256[:12]
    query = {"sets": f"{name},{name}:es,{study.key[:12]}@t"}
    test = opened("overlap", **query)
    assert [head.value for head in test.subheader][:4] == [
        "Every pair",
        "Two of them, layer by layer",
        "Any K of them",
        "Composition by layer",
    ]
    assert test.query_params["sets"] in (query["sets"], [query["sets"]])
    # They are masks and scores of one model, and chance is counted in neurons.
    assert "by chance" in texts(test)
    assert all("neurons" in part for part in texts(test).split("by chance")[1:])
    drawn = "".join(chart.proto.spec for chart in test.get("plotly_chart"))
    assert "how many sets" in drawn
    assert "topic" not in drawn


def test_two_scores_have_a_rank_correlation() -> None:
    study, _ = fill()
    test = opened("overlap", sets=f"{study.key[:12]}@es,{study.key[:12]}@t")
    ranks = next(frame.value for frame in test.dataframe if "rho" in frame.value)
    assert ranks["rho"].tolist() == [pytest.approx(1.0)]  # t ranks as ES does


def test_one_alone_says_what_to_do() -> None:
    study, _ = fill()
    assert len(cards()) == 1
    name = read_mask(study.file("mask.json")).sha256[:12]
    assert "at least two" in texts(opened("overlap", sets=name))


def test_models_of_different_shape_are_told() -> None:
    study, _ = fill()
    other = keep(make_mask(NeuronSet([5], {0: [1]})))
    names = [read_mask(path).sha256[:12] for path in (study.file("mask.json"), other)]
    test = opened("overlap", sets=",".join(names))
    assert "different shape" in test.error[0].value
