"""The safety map as cells: layers by neurons, binned where the model is wider than a screen.

A cell shows one neuron of those it holds: the strongest of the selected ones, or where none
is selected the strongest of all. A single layer is folded into rows, so that each of its
neurons has a cell of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

COLUMNS = 256
"""Cells across, at most."""

Vector = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """The part of a model that is looked at; both ends are inside.

    Args:
        layers: first and last.
        neurons: first and last in each layer.
    """

    layers: tuple[int, int]
    neurons: tuple[int, int]

    @classmethod
    def whole(cls, widths: Sequence[int]) -> "Window":
        """All of a model."""
        return cls((0, len(widths) - 1), (0, max(widths) - 1))

    @classmethod
    def of_layer(cls, widths: Sequence[int], layer: int) -> "Window":
        """All of one layer."""
        return cls((layer, layer), (0, max(widths[layer], 1) - 1))

    def within(self, widths: Sequence[int]) -> "Window":
        """The nearest window that lies within a model of these widths."""
        whole = self.whole(widths)
        layers = _clamped(self.layers, whole.layers[1])
        widest = max(widths[layers[0] : layers[1] + 1])
        return Window(layers, _clamped(self.neurons, max(widest, 1) - 1))


def _clamped(ends: tuple[int, int], last: int) -> tuple[int, int]:
    low, high = sorted(min(max(end, 0), last) for end in ends)
    return low, high


@dataclass(frozen=True)
class Grid:
    """A window as cells, ``[rows, columns]`` each.

    Args:
        window: what is shown.
        folded: whether the rows are of one layer, a row following on the one before.
        per: neurons a cell, but for the last of a row.
        layer: of each row, ``[rows]``.
        first: the first neuron of each row, ``[rows]``.
        value: score of the neuron that the cell shows; NaN where there is none.
        neuron: which neuron that is; -1 where there is none.
        chosen: how many of the cell's neurons are selected.
    """

    window: Window
    folded: bool
    per: int
    layer: Ints
    first: Ints
    value: Vector
    neuron: Ints
    chosen: Ints

    def place(self, layer: int, neuron: int) -> tuple[int, int] | None:
        """Row and column of a neuron's cell; None where it lies outside."""
        rows = np.flatnonzero((self.layer == layer) & (self.first <= neuron))
        if not len(rows):
            return None
        row = int(rows[-1])
        column = (neuron - int(self.first[row])) // self.per
        inside = column < self.value.shape[1] and neuron <= self.window.neurons[1]
        return (row, column) if inside else None


def grid(
    values: Vector, neurons: NeuronSet, window: Window | None = None, columns: int = COLUMNS
) -> Grid:
    """Bin a score over a window of the model.

    Args:
        values: ``[neurons]``, a score of every neuron, layer after layer.
        neurons: the selection, whose widths are the model's.
        window: what to show; all of the model when left out.
        columns: cells across, at most.

    Raises:
        SafeNeuronError: the score is of another shape.
    """
    widths = neurons.widths
    if len(values) != neurons.total:
        raise SafeNeuronError(
            f"the score has {len(values)} neurons and the model {neurons.total}; they must be of "
            "one model"
        )
    window = (window or Window.whole(widths)).within(widths)
    (top, bottom), (left, right) = window.layers, window.neurons
    folded = top == bottom
    span = right - left + 1
    if folded:
        # About three times as wide as high, in whole sixteens.
        across = min(columns, 16 * int(np.ceil(np.sqrt(3 * span) / 16)))
        stop = min(right + 1, widths[top])
        rows = [(top, first, min(first + across, stop)) for first in range(left, right + 1, across)]
        per = 1
    else:
        per = -(-span // columns)
        across = -(-span // per)
        rows = [(layer, left, min(right + 1, widths[layer])) for layer in range(top, bottom + 1)]
    starts = np.concatenate([[0], np.cumsum(widths)])
    value = np.full((len(rows), across), np.nan)
    neuron = np.full((len(rows), across), -1, dtype=np.int64)
    chosen = np.zeros((len(rows), across), dtype=np.int64)
    for row, (layer, first, stop) in enumerate(rows):
        if stop > first:
            member = np.zeros(stop - first, dtype=np.bool_)
            inside = neurons.layer(layer)
            member[inside[(inside >= first) & (inside < stop)] - first] = True
            part = values[starts[layer] + first : starts[layer] + stop]
            value[row], shown, chosen[row] = _cells(part, member, across, per)
            neuron[row] = np.where(shown >= 0, first + shown, -1)
    layers, firsts = (np.array([row[i] for row in rows], dtype=np.int64) for i in (0, 1))
    return Grid(window, folded, per, layers, firsts, value, neuron, chosen)


def _cells(
    values: Vector, member: npt.NDArray[np.bool_], across: int, per: int
) -> tuple[Vector, Ints, Ints]:
    """One row: the shown neuron's score, its place in the row (-1 for none), how many selected."""
    padded = np.full(across * per, np.nan)
    padded[: len(values)] = values
    inside = np.zeros(across * per, dtype=np.bool_)
    inside[: len(member)] = member
    block, selected = padded.reshape(across, per), inside.reshape(across, per)
    strength = np.where(np.isnan(block), -1.0, np.abs(block))
    counts = selected.sum(axis=1)
    # A cell with any selected shows one of those.
    strength[selected < (counts > 0)[:, None]] = -2.0
    best = strength.argmax(axis=1)
    here = np.arange(across)
    shown = np.where(strength[here, best] >= 0, here * per + best, -1)
    return block[here, best], shown, counts


def mass_by_layer(values: Vector, neurons: NeuronSet) -> Vector:
    """Safety mass of each layer, ``[layers]``: the positive scores of its selected neurons.

    A score that is not finite counts for nothing.
    """
    starts = np.concatenate([[0], np.cumsum(neurons.widths)])
    mass = np.zeros(len(neurons.widths))
    for layer, chosen in neurons.layers().items():
        part = values[starts[layer] + chosen]
        mass[layer] = part[np.isfinite(part) & (part > 0)].sum()
    return mass


def colour_limit(values: Vector) -> float:
    """Where the colours end: nearly the greatest size, so that one outlier fades nothing."""
    sizes = np.abs(values[np.isfinite(values)])
    limit = float(np.quantile(sizes, 0.999)) if len(sizes) else 0.0
    return limit or 1.0


def percentile(values: Vector) -> Vector:
    """Each neuron's percentile among all of them, ``[neurons]``, 0 to 100; ties share theirs."""
    order = np.argsort(values)  # what is no number comes last
    known = int((~np.isnan(values)).sum())
    ordered = values[order[:known]]
    # Where runs of equal values begin, and where they end.
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[:known])
    ends = np.append(starts[1:], known)
    found = np.full(len(values), np.nan)
    found[order[:known]] = np.repeat((starts + ends) / 2, ends - starts) / max(known, 1)
    return 100 * found


def difference(first: Vector, second: Vector, same_score: bool) -> Vector:
    """What a second map has more than a first one, ``[neurons]``.

    Two values of one score are subtracted; of two scores, whose units differ, the percentiles.

    Raises:
        SafeNeuronError: the two are of different shape.
    """
    if len(first) != len(second):
        raise SafeNeuronError(
            f"maps of {len(first)} and of {len(second)} neurons cannot be subtracted; choose two "
            "of one model shape"
        )
    if not same_score:
        first, second = percentile(first), percentile(second)
    with np.errstate(invalid="ignore"):  # infinity less infinity is no number, and shown as none
        return second - first
