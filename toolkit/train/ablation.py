"""What the policy's forward pass is run without while it trains.

``safeneuron`` zeroes its frozen neurons in every pass (Algorithm 1, step 3). ``neuronguard``
zeroes those found last in its second pass. ``adaptive`` draws for every pair afresh.
Only training passes are changed: evaluation, searching and saving see the whole model.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from operator import or_
from typing import Protocol

import numpy as np

from toolkit.intervene import Intervention, intervene
from toolkit.models.load import LoadedModel
from toolkit.neurons import NeuronSet
from toolkit.rows import Plan, RowPlans
from toolkit.train.finding import Found
from toolkit.train.recipes import Mixture

# What a pair is drawn to be without, as a mixture weighs it.
KINDS = ("whole", "rounds", "share", "hold", "probe")


class Ablation(Protocol):
    """Changes the forward passes of training."""

    def begin_step(self, step: int) -> None:
        """Hear that optimiser step ``step`` begins, counted from 0."""
        ...

    def around(self, pairs: int, sides: int) -> AbstractContextManager[None]:
        """Change the passes inside the ``with`` block.

        Args:
            pairs: pairs in the batch.
            sides: rows a pair has; row r belongs to pair ``r % pairs``.
        """
        ...


class FixedAblation:
    """Zeroes the same neurons in every row.

    Args:
        loaded: the model.
        neurons: which; :meth:`update` may change them.
    """

    def __init__(self, loaded: LoadedModel, neurons: NeuronSet) -> None:
        self._loaded, self._neurons = loaded, neurons

    def update(self, found: Found, step: int) -> None:
        """From now on zero what was found last."""
        self._neurons = reduce(or_, found.rounds, NeuronSet.empty(self._neurons.widths))

    def begin_step(self, step: int) -> None:
        """Nothing changes from step to step."""

    def around(self, pairs: int, sides: int) -> AbstractContextManager[None]:
        """Zero the neurons inside the ``with`` block."""
        return intervene(self._loaded.model, self._loaded.layout, Intervention(self._neurons))


class DrawnAblation:
    """Draws what each pair is without, from what was found last.

    A draw depends on the seed, the step and the pair's place in the whole batch alone: a
    run that was killed, or that takes its batch in smaller parts, draws the same.

    Args:
        loaded: the model.
        frozen: the mask's neurons, zeroed wherever others are; all there is to remove
            until the first search.
        mixture: what is drawn how often.
        seed: of the draws.
        process: this process among those that share the batch, and how many there are.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        frozen: NeuronSet,
        mixture: Mixture,
        seed: int,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        self._loaded, self._frozen, self._mixture, self._seed = loaded, frozen, mixture, seed
        self._process = process
        self._found = Found((frozen,), frozen)
        self._step = self._drawn = 0

    def update(self, found: Found, step: int) -> None:
        """From now on draw from what was found last."""
        self._found = found

    def begin_step(self, step: int) -> None:
        """Begin with the first pair of step ``step``."""
        self._step, self._drawn = step, 0

    @contextmanager
    def around(self, pairs: int, sides: int) -> Iterator[None]:
        """Draw for the next ``pairs`` pairs; all rows of a pair are without the same."""
        place, processes = self._process
        # Accelerate deals whole parts of a batch out in turn.
        first = self._drawn * processes + place * pairs
        rows = range(first, first + pairs)
        self._drawn += pairs
        plans = RowPlans(self._loaded, [self.draw(self._step, row) for row in rows])
        plans.assign(list(range(pairs)) * sides)
        with plans.attached():
            yield

    def draw(self, step: int, row: int) -> Plan:
        """What the pair in place ``row`` of step ``step`` is without."""
        generator = np.random.default_rng([self._seed, step, row])
        mixture, found = self._mixture, self._found
        weights = np.array([getattr(mixture, kind) for kind in KINDS])
        kind = KINDS[generator.choice(len(KINDS), p=weights / weights.sum())]
        if kind == "whole":
            return Plan()
        if kind == "hold" and found.candidates:
            return self._hold(generator)
        removed = self._frozen
        if kind == "share":
            return Plan((Intervention(removed | self._part_of_head(generator)),))
        if kind == "probe" and found.probed is not None:
            return Plan((Intervention(removed | found.probed),))
        rounds = generator.integers(1, len(found.rounds), endpoint=True)
        return Plan((Intervention(reduce(or_, found.rounds[:rounds], removed)),))

    def _part_of_head(self, generator: np.random.Generator) -> NeuronSet:
        low, high = self._mixture.parts
        part = generator.uniform(low, high)
        masks = self._found.head.masks()
        return NeuronSet.from_masks([m & (generator.random(len(m)) < part) for m in masks])

    def _hold(self, generator: np.random.Generator) -> Plan:
        mixture, candidates = self._mixture, self._found.candidates
        count = min(int(generator.integers(1, mixture.held, endpoint=True)), len(candidates))
        steps = []
        for place in generator.choice(len(candidates), size=count, replace=False):
            chosen = candidates[place]
            factor = mixture.factors[generator.integers(len(mixture.factors))]
            neuron = NeuronSet(self._frozen.widths, {chosen.layer: [chosen.index]})
            steps.append(Intervention(neuron, "hold", factor * chosen.activation))
        return Plan(tuple(steps))
