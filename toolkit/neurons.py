"""Sets of MLP neurons and their algebra.

A neuron is always ``(layer, index)``: element ``index`` of the input of the layer's
down projection (method: SafeNeuron, Eq. 3). Layers may differ in width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from toolkit.errors import SafeNeuronError

Indices = npt.NDArray[np.int64]


class NeuronSet:
    """An immutable set of neurons of one model shape.

    Args:
        widths: neurons in each layer; entry 0 for a layer without an MLP.
        layers: layer -> neuron indices, in any order, without repeats.

    Raises:
        SafeNeuronError: a layer or an index is out of range, or an index is repeated.
    """

    __slots__ = ("_layers", "_widths")

    def __init__(self, widths: Sequence[int], layers: Mapping[int, Iterable[int]]) -> None:
        self._widths = tuple(int(width) for width in widths)
        kept: dict[int, Indices] = {}
        for layer in sorted(layers):
            try:
                indices = np.fromiter(layers[layer], dtype=np.int64)
            except OverflowError as error:
                raise SafeNeuronError(f"layer {layer} names a neuron out of range") from error
            if not 0 <= layer < len(self._widths):
                raise SafeNeuronError(
                    f"layer {layer} is out of range: the model has layers 0 to "
                    f"{len(self._widths) - 1}"
                )
            ordered = np.unique(indices)
            if len(ordered) != len(indices):
                raise SafeNeuronError(f"layer {layer} names a neuron more than once")
            if len(ordered) and (ordered[0] < 0 or ordered[-1] >= self._widths[layer]):
                wrong = ordered[0] if ordered[0] < 0 else ordered[-1]
                raise SafeNeuronError(
                    f"layer {layer}: neuron {wrong} is out of range 0 to {self._widths[layer] - 1}"
                )
            if len(ordered):
                ordered.setflags(write=False)
                kept[layer] = ordered
        self._layers = kept

    @classmethod
    def from_masks(cls, masks: Sequence[npt.NDArray[np.bool_]]) -> NeuronSet:
        """Build from one boolean vector ``[width]`` for each layer."""
        return cls(
            [len(mask) for mask in masks],
            {layer: np.flatnonzero(mask) for layer, mask in enumerate(masks)},
        )

    @classmethod
    def empty(cls, widths: Sequence[int]) -> NeuronSet:
        """The set without neurons for a model of these widths."""
        return cls(widths, {})

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons in each layer of the model."""
        return self._widths

    @property
    def total(self) -> int:
        """All neurons of the model, in the set or not."""
        return sum(self._widths)

    @property
    def fraction(self) -> float:
        """Share of the model's neurons that are in the set, 0 to 1."""
        return len(self) / self.total if self.total else 0.0

    def layer(self, layer: int) -> Indices:
        """Sorted indices of one layer, read-only; empty when it has none."""
        return self._layers.get(layer, np.empty(0, dtype=np.int64))

    def layers(self) -> dict[int, Indices]:
        """Layer -> sorted indices, for the layers that have any."""
        return dict(self._layers)

    def counts(self) -> Indices:
        """Neurons of the set in each layer, ``[layers]``."""
        return np.array([len(self.layer(i)) for i in range(len(self._widths))], dtype=np.int64)

    def masks(self) -> list[npt.NDArray[np.bool_]]:
        """One boolean vector ``[width]`` for each layer."""
        masks = [np.zeros(width, dtype=np.bool_) for width in self._widths]
        for layer, indices in self._layers.items():
            masks[layer][indices] = True
        return masks

    def random_like(self, seed: int) -> NeuronSet:
        """Draw the random control: as many neurons in each layer, none of them ours.

        Where a layer has too few neurons outside the set, the draw takes all of those
        and fills up from the set itself.

        Args:
            seed: of NumPy's default generator; the same seed gives the same set.
        """
        generator = np.random.default_rng(seed)
        drawn: dict[int, Indices] = {}
        for layer, indices in self._layers.items():
            outside = np.setdiff1d(np.arange(self._widths[layer]), indices)
            chosen = generator.permutation(outside)[: len(indices)]
            if len(chosen) < len(indices):
                spare = generator.permutation(indices)[: len(indices) - len(chosen)]
                chosen = np.concatenate([chosen, spare])
            drawn[layer] = chosen
        return NeuronSet(self._widths, drawn)

    def _combine(
        self, other: NeuronSet, operation: Callable[[Indices, Indices], npt.NDArray[np.int64]]
    ) -> NeuronSet:
        if self._widths != other._widths:
            raise SafeNeuronError(
                f"cannot combine neurons of different models: {len(self._widths)} layers of "
                f"{self.total} neurons and {len(other._widths)} layers of {other.total}"
            )
        return NeuronSet(
            self._widths,
            {
                layer: operation(self.layer(layer), other.layer(layer))
                for layer in self._layers.keys() | other._layers.keys()
            },
        )

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, np.union1d)

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, np.intersect1d)

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, np.setdiff1d)

    def __xor__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, np.setxor1d)

    def __invert__(self) -> NeuronSet:
        """All other neurons of the model."""
        return NeuronSet.from_masks([~mask for mask in self.masks()])

    def __contains__(self, neuron: object) -> bool:
        if not (isinstance(neuron, tuple) and len(neuron) == 2):
            return False
        layer, index = neuron
        return bool(np.isin(index, self.layer(layer)).item())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for layer, indices in self._layers.items():
            for index in indices.tolist():
                yield layer, index

    def __len__(self) -> int:
        return sum(len(indices) for indices in self._layers.values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return self._widths == other._widths and list(self) == list(other)

    def __hash__(self) -> int:
        return hash((self._widths, tuple(self)))

    def __repr__(self) -> str:
        return f"NeuronSet({len(self)} of {self.total} neurons, {self.fraction:.2%})"
