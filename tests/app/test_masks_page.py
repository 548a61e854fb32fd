"""The Masks page: the library, set algebra, and where a mask goes."""

from pathlib import Path

import pytest

from analysis.mask_library import cards, keep
from tests.app.test_pages import WIDTHS, fill, opened, texts
from tests.masks import make_mask
from toolkit.masks import read_mask
from toolkit.neurons import NeuronSet

A = NeuronSet(WIDTHS, {0: [1, 2, 3], 2: [4]})
B = NeuronSet(WIDTHS, {0: [2, 3, 9]})


@pytest.mark.parametrize(
    ("how", "result"), [("union", A | B), ("intersection", A & B), ("difference", A - B)]
)
def test_set_algebra(how: str, result: NeuronSet, own_home: Path) -> None:
    names = []
    for neurons in (A, B):
        names.append("k" + read_mask(keep(make_mask(neurons))).sha256[:12])
    test = opened("masks", masks=",".join(names), how=how)
    assert [metric.value for metric in test.metric] == ["4", "3", str(len(result))]
    next(b for b in test.button if b.label == "Keep it").click().run()
    assert not test.exception
    kept = [read_mask(path).neuron_set() for path in (own_home / "masks").glob("*.json")]
    assert sorted(map(len, kept)) == sorted([4, 3, len(result)])
    assert result in kept


def test_a_mask_goes_to_an_attack() -> None:
    study, _ = fill()
    test = opened("masks")
    next(b for b in test.button if b.label == "Attack with it").click().run()
    assert test.title[0].value == "Attack"
    mask = test.query_params["mask"]
    assert (mask if isinstance(mask, str) else mask[0]) == str(study.file("mask.json"))


def test_a_kept_mask_is_removed_and_a_study_s_is_not(own_home: Path) -> None:
    fill()
    path = keep(make_mask(A))
    test = opened("masks", masks="k" + read_mask(path).sha256[:12])
    test.button(key="remove").click().run()
    assert not test.exception
    assert not path.exists()
    assert [card.origin for card in cards()] == ["study"]
    assert not [b for b in opened("masks").button if b.key == "remove"]


def test_masks_of_two_shapes_are_not_combined() -> None:
    names = []
    for neurons in (A, NeuronSet([5], {0: [1]})):
        names.append("k" + read_mask(keep(make_mask(neurons))).sha256[:12])
    test = opened("masks", masks=",".join(names))
    assert "different models" in test.error[0].value


def test_a_damaged_mask_is_passed_over(own_home: Path) -> None:
    keep(make_mask(A))
    (own_home / "masks" / "broken.json").write_text("[[[[")
    assert "4 of 100 neurons" in texts(opened("masks")).replace("\\", "")
