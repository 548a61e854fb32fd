"""The algebra of neuron sets, held against Python's own sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

WIDTHS = (7, 0, 5, 12)
ALL = [(layer, index) for layer, width in enumerate(WIDTHS) for index in range(width)]


def build(neurons: set[tuple[int, int]]) -> NeuronSet:
    layers: dict[int, list[int]] = {}
    for layer, index in neurons:
        layers.setdefault(layer, []).append(index)
    return NeuronSet(WIDTHS, layers)


plain = st.sets(st.sampled_from(ALL))


@given(plain, plain)
def test_operations_are_those_of_sets(a: set[tuple[int, int]], b: set[tuple[int, int]]) -> None:
    x, y = build(a), build(b)
    assert set(x | y) == a | b
    assert set(x & y) == a & b
    assert set(x - y) == a - b
    assert set(x ^ y) == a ^ b
    assert len(x) == len(a)
    assert all(((neuron in x) == (neuron in a)) for neuron in ALL)


@given(plain, plain, plain)
def test_laws(a: set[tuple[int, int]], b: set[tuple[int, int]], c: set[tuple[int, int]]) -> None:
    x, y, z = build(a), build(b), build(c)
    empty = NeuronSet.empty(WIDTHS)
    everything = build(set(ALL))
    assert x | y == y | x
    assert (x | y) | z == x | (y | z)
    assert x & (y | z) == (x & y) | (x & z)
    assert everything - (x | y) == (everything - x) & (everything - y)
    assert x - x == empty
    assert x ^ y == (x - y) | (y - x)
    assert x | empty == x
    assert hash(x) == hash(build(set(a)))


@given(plain)
def test_masks_round_trip(a: set[tuple[int, int]]) -> None:
    x = build(a)
    masks = x.masks()
    assert [mask.shape for mask in masks] == [(width,) for width in WIDTHS]
    assert sum(int(mask.sum()) for mask in masks) == len(a)
    assert NeuronSet.from_masks(masks) == x


@given(plain, st.integers(0, 2**32 - 1))
def test_random_like_matches_layer_by_layer(a: set[tuple[int, int]], seed: int) -> None:
    x = build(a)
    drawn = x.random_like(seed)
    assert drawn == x.random_like(seed)
    assert (drawn.counts() == x.counts()).all()
    for layer, width in enumerate(WIDTHS):
        size = int(x.counts()[layer])
        # As many as the rest of the layer can give are from outside the set.
        shared = np.intersect1d(drawn.layer(layer), x.layer(layer))
        assert len(shared) == max(0, size - (width - size))


def test_random_like_differs_by_seed() -> None:
    x = NeuronSet([1000], {0: range(50)})
    assert x.random_like(0) != x.random_like(1)


def test_random_like_draws_every_outside_neuron_alike() -> None:
    x = NeuronSet([20], {0: range(10)})
    hits = sum(x.random_like(seed).masks()[0].astype(int) for seed in range(100))
    assert isinstance(hits, np.ndarray)
    assert hits[:10].sum() == 0
    assert (hits[10:] == 100).all()


def test_sizes() -> None:
    x = NeuronSet(WIDTHS, {0: [3, 1], 3: [11]})
    assert x.total == 24
    assert x.fraction == 3 / 24
    assert list(x) == [(0, 1), (0, 3), (3, 11)]
    assert x.counts().tolist() == [2, 0, 0, 1]
    assert x.layer(2).tolist() == []
    assert NeuronSet.empty([]).fraction == 0.0
    assert "3 of 24" in repr(x)


def test_contains_nothing_but_neurons() -> None:
    x = NeuronSet(WIDTHS, {0: [3]})
    assert (0, 3) in x
    for stranger in ((0, 4), (9, 3), (-1, 3), "neuron", 3, (0, 3, 3), None):
        assert stranger not in x


def test_indices_are_read_only() -> None:
    x = NeuronSet(WIDTHS, {0: [3]})
    with pytest.raises(ValueError, match="read-only"):
        x.layer(0)[0] = 5


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({4: [0]}, "layer 4 is out of range"),
        ({-1: [0]}, "layer -1 is out of range"),
        ({0: [7]}, "neuron 7 is out of range 0 to 6"),
        ({0: [-1]}, "neuron -1 is out of range"),
        ({1: [0]}, "neuron 0 is out of range"),
        ({0: [2, 2]}, "more than once"),
    ],
)
def test_refusals(layers: dict[int, list[int]], message: str) -> None:
    with pytest.raises(SafeNeuronError, match=message):
        NeuronSet(WIDTHS, layers)


def test_models_of_other_shapes_do_not_combine() -> None:
    other = NeuronSet([7, 0, 5, 13], {})
    for operation in ("__or__", "__and__", "__sub__", "__xor__"):
        with pytest.raises(SafeNeuronError, match="different models"):
            getattr(NeuronSet.empty(WIDTHS), operation)(other)
    assert NeuronSet.empty(WIDTHS) != other
    assert NeuronSet.empty(WIDTHS) != "a set"
