"""The library of masks: kept, combined, edited, worked on by several at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.mask_library import (
    cards,
    change_working,
    combine,
    discard,
    edit,
    keep,
    keep_text,
    read_working,
    working_path,
)
from tests.masks import make_mask
from toolkit.errors import SafeNeuronError
from toolkit.masks import parse_mask, read_mask
from toolkit.neurons import NeuronSet

WIDTHS = [6, 0, 9]
PLACES = [(layer, index) for layer, width in enumerate(WIDTHS) for index in range(width)]
SETS = st.sets(st.sampled_from(PLACES))


def neurons_of(places: set[tuple[int, int]]) -> NeuronSet:
    layers = {layer: [i for at, i in places if at == layer] for layer in range(len(WIDTHS))}
    return NeuronSet(WIDTHS, layers)


@given(st.lists(SETS, min_size=2, max_size=4))
def test_algebra_is_that_of_sets(sets: list[set[tuple[int, int]]]) -> None:
    masks = [make_mask(neurons_of(places)) for places in sets]
    wanted = {
        "union": set.union(*sets),
        "intersection": set.intersection(*sets),
        "difference": sets[0].difference(*sets[1:]),
    }
    for operation, places in wanted.items():
        made = combine(masks, operation)  # type: ignore[arg-type]
        assert set(made.neuron_set()) == places
        assert made.method.parameters["of"] == [mask.sha256 for mask in masks]
        assert parse_mask(made.to_json()) == made


@given(SETS, SETS, SETS)
def test_an_edit_adds_then_takes(
    first: set[tuple[int, int]], more: set[tuple[int, int]], fewer: set[tuple[int, int]]
) -> None:
    assert (
        set(edit(make_mask(neurons_of(first)), more, fewer).neuron_set()) == (first | more) - fewer
    )


def test_kept_masks_are_listed_and_discarded(own_home: Path) -> None:
    mask = make_mask(neurons_of({(0, 1), (2, 3)}))
    path = keep(mask)
    assert keep_text(mask.to_json(), "mine.json") == path  # the same mask is kept once
    [card] = cards()
    assert (card.origin, card.count, card.path, card.sha256) == ("kept", 2, path, mask.sha256)
    discard(card)
    assert cards() == []


def test_what_is_no_mask_is_refused() -> None:
    with pytest.raises(SafeNeuronError, match=r"mine\.json"):
        keep_text("{}", "mine.json")
    with pytest.raises(SafeNeuronError, match="no neurons"):
        keep(make_mask(NeuronSet.empty(WIDTHS)))
    with pytest.raises(SafeNeuronError, match="at least two"):
        combine([make_mask(neurons_of({(0, 1)}))], "union")
    with pytest.raises(SafeNeuronError, match="out of range"):
        edit(make_mask(neurons_of({(0, 1)})), add=[(0, 6)])


def test_a_changed_file_is_read_anew() -> None:
    mask = make_mask(neurons_of({(0, 1)}))
    path = keep(mask)
    assert cards()[0].count == 1
    make_mask(neurons_of({(0, 1), (0, 2)})).write(path)
    assert cards()[0].count == 2


def test_two_at_once_lose_nothing_of_the_working_mask() -> None:
    mask = make_mask(neurons_of({(0, 1)}))
    assert read_working(mask).count == 0
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda place: change_working(mask, add=[place]), PLACES))
    assert set(read_working(mask).neuron_set()) == set(PLACES)
    change_working(mask, take=PLACES[1:])
    assert list(read_mask(working_path(mask.model.fingerprint)).neuron_set()) == PLACES[:1]
    assert [card.origin for card in cards()] == ["working"]
