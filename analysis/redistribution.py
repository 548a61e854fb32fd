"""What alignment moved: where the safety neurons were before, and where they are after.

The paper claims that freezing safety neurons makes a model build others (SafeNeuron, Sec.
3.3) and never measures it. Here it is measured: how much safety sits in each layer, over how
many neurons and layers it is spread, how many neurons must go before refusals halve, and
which neurons joined and left.

A neuron's *safety mass* is its score where it is positive and the neuron is in the mask, else
zero. Spread is told as the effective number, exp of the entropy of the shares, which is n
for n equal ones (Hill number of order 1), and as the Gini coefficient, 0 for equal ones.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import entr

from analysis.overlap.pairs import PairOverlap, pair_overlap
from analysis.robustness import AttackResult
from analysis.scores.table import column
from analysis.statistics import wilson
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

Vector = npt.NDArray[np.float64]
RESAMPLES = 2_000


def effective_number(mass: Vector) -> float:
    """Exp of the entropy of the shares of a mass, in nats; 0 where there is none."""
    total = mass.sum()
    if not total > 0:
        return 0.0
    return float(np.exp(entr(np.maximum(mass, 0.0) / total).sum()))


def gini(mass: Vector) -> float:
    """Gini coefficient of a mass over its places, 0 to 1; NaN where there is none."""
    total = mass.sum()
    if not total > 0:
        return float("nan")
    n = len(mass)
    ranks = np.arange(1, n + 1)
    return float(2 * (ranks @ np.sort(mass)) / (n * total) - (n + 1) / n)


@dataclass(frozen=True)
class Side:
    """A model before or after alignment.

    Args:
        name: how it is called.
        scores: its score table.
        neurons: its safety neurons.
        attack: an attack on it with ORI and SWEEP, for the number that halves refusals.
    """

    name: str
    scores: pd.DataFrame
    neurons: NeuronSet
    attack: AttackResult | None = None

    def mass(self, score: str) -> Vector:
        """Safety mass of every neuron, ``[neurons]``, layer after layer.

        Raises:
            SafeNeuronError: no such score, another shape, or a score that is not finite.
        """
        if score not in self.scores:
            raise SafeNeuronError(f"{self.name} has no score {score!r}")
        values = column(self.scores, score)
        if len(values) != self.neurons.total:
            raise SafeNeuronError(
                f"{self.name}: the score table has {len(values)} neurons, the mask's model "
                f"{self.neurons.total}"
            )
        if not len(self.neurons):
            raise SafeNeuronError(f"{self.name} has no safety neurons, so no safety mass")
        member = np.concatenate(self.neurons.masks())
        if not np.isfinite(values[member]).all():
            raise SafeNeuronError(
                f"{self.name}: {score} is not finite for a neuron of the mask, whose activations "
                "are constant; use the score sas"
            )
        return np.where(member, np.maximum(values, 0.0), 0.0)


# --- How many neurons must go ------------------------------------------------------------


def _refusals(result: AttackResult, family: str) -> tuple[list[int], npt.NDArray[np.bool_]]:
    """Neurons removed at each point, and who refused: ``[points, prompts]``, ORI first.

    Prompts that some setting was not asked are left out of all.
    """
    sizes = {"ORI": 0} | {
        s.name: s.neurons for s in result.settings if s.name.partition(" ")[0] == family
    }
    told: dict[str, dict[int, str]] = {name: {} for name in sizes}
    for answer in result.answers:
        if answer.side == "harmful" and answer.setting in told:
            told[answer.setting][answer.index] = answer.verdict
    if len(sizes) < 2 or not told["ORI"]:
        raise SafeNeuronError(
            f"the attack has no ORI or no {family} setting; attack with --settings ori,sweep"
        )
    shared = sorted(set.intersection(*(set(answers) for answers in told.values())))
    asked = [i for i in shared if all(answers[i] != "skipped" for answers in told.values())]
    if not asked:
        raise SafeNeuronError("no harmful prompt was answered under every setting of the sweep")
    names = sorted(sizes, key=lambda name: (sizes[name], name != "ORI"))
    refused = [[told[name][i] == "refused" for i in asked] for name in names]
    return [sizes[name] for name in names], np.array(refused)


def refusal_curve(result: AttackResult, family: str = "SWEEP") -> pd.DataFrame:
    """Refusals of harmful prompts against how many neurons were removed.

    Args:
        result: an attack with ORI and SWEEP.
        family: ``SWEEP``, or ``SWEEP-RANDOM`` for as many random neurons.

    Returns:
        Columns ``neurons``, ``n``, ``k_refused``, ``refused``, ``refused_low`` and
        ``refused_high`` (Wilson 95 %), from none removed to most.

    Raises:
        SafeNeuronError: the attack has no such settings.
    """
    sizes, refused = _refusals(result, family)
    rows = []
    for size, answers in zip(sizes, refused, strict=True):
        share = wilson(int(answers.sum()), len(answers))
        row = {"neurons": size, "n": share.n, "k_refused": share.k, "refused": share.share}
        rows.append(row | {"refused_low": share.low, "refused_high": share.high})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Halving:
    """How many neurons must go before half of the refusals are gone.

    Args:
        neurons: interpolated between the sweep's points; None where it never got there.
        low, high: bootstrap 95 % interval over prompts; None for "not reached".
        most: the most neurons that the sweep removed.
        refused: share of harmful prompts that the whole model refuses.
    """

    neurons: float | None
    low: float | None
    high: float | None
    most: int
    refused: float

    def __str__(self) -> str:
        if self.refused == 0:
            return "it refuses nothing"
        ends = [
            f"{end:.0f}" if end is not None else f"> {self.most}" for end in (self.low, self.high)
        ]
        here = f"{self.neurons:.0f}" if self.neurons is not None else f"not reached by {self.most}"
        return f"{here} [{ends[0]}, {ends[1]}]"


def _crossing(sizes: Vector, shares: Vector) -> float:
    """Where a curve first falls to half of its first value; infinity where it does not."""
    target = shares[0] / 2
    below = np.flatnonzero(shares <= target)
    if not shares[0] > 0 or not len(below):
        return float("inf")
    here = int(below[0])
    before, after = shares[here - 1], shares[here]
    step = (before - target) / (before - after)
    return float(sizes[here - 1] + step * (sizes[here] - sizes[here - 1]))


def neurons_to_halve(
    result: AttackResult, family: str = "SWEEP", resamples: int = RESAMPLES, seed: int = 0
) -> Halving:
    """How many neurons a sweep has to remove before refusals halve.

    The crossing is interpolated between neighbouring points. Its interval is a percentile
    bootstrap over prompts, each drawn with its answers under all settings.

    Args:
        result: an attack with ORI and SWEEP.
        family: ``SWEEP``, or ``SWEEP-RANDOM`` for the control.
        resamples: draws.
        seed: of NumPy's default generator.

    Raises:
        SafeNeuronError: the attack has no such settings.
    """
    sizes, refused = _refusals(result, family)
    points, prompts = np.array(sizes, dtype=np.float64), refused.shape[1]
    generator = np.random.default_rng(seed)
    times = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    shares = times @ refused.T / prompts
    drawn = np.sort([_crossing(points, curve) for curve in shares])
    # Order statistics, since some may be infinite: not reached.
    low, high = (drawn[round(q * (resamples - 1))] for q in (0.025, 0.975))
    found = _crossing(points, refused.mean(axis=1))
    values = [float(v) if np.isfinite(v) else None for v in (found, low, high)]
    return Halving(values[0], values[1], values[2], int(points[-1]), float(refused[0].mean()))


# --- Before and after --------------------------------------------------------------------


@dataclass(frozen=True)
class Redistribution:
    """What alignment moved.

    Args:
        score: which score the mass is of.
        layers: one row a layer: ``layer``, ``width``; for before and after ``mass_*``,
            ``share_*`` (of the model's mass), ``neurons_*``, ``effective_*`` (neurons) and
            ``gini_*`` (over the mask's neurons of the layer); ``stayed``, ``joined``,
            ``left`` (neurons).
        summary: one row a quantity: ``quantity``, ``before``, ``after``.
        joined, left: the neurons.
        overlap: of the two masks, with chance.
        halving: before and after, where both were swept.
        control: the same for random neurons.
    """

    score: str
    layers: pd.DataFrame
    summary: pd.DataFrame
    joined: NeuronSet
    left: NeuronSet
    overlap: PairOverlap
    halving: tuple[Halving, Halving] | None
    control: tuple[Halving, Halving] | None


def redistribution(before: Side, after: Side, score: str = "sas") -> Redistribution:
    """Compare a model with what alignment made of it.

    Raises:
        SafeNeuronError: the two differ in shape, or a mask is empty, or a score is not there
            or not finite.
    """
    overlap, pairs = pair_overlap(before.neurons, after.neurons, (before.name, after.name))
    widths = before.neurons.widths
    cuts = np.cumsum(widths)[:-1]
    rows = pd.DataFrame({"layer": np.arange(len(widths)), "width": widths})
    facts: dict[str, list[float]] = {}
    for when, side in (("before", before), ("after", after)):
        mass = side.mass(score)
        parts = np.split(mass, cuts)
        chosen = [part[mask] for part, mask in zip(parts, side.neurons.masks(), strict=True)]
        by_layer = np.array([part.sum() for part in parts])
        rows[f"mass_{when}"] = by_layer
        rows[f"share_{when}"] = by_layer / by_layer.sum() if by_layer.sum() else 0.0
        rows[f"neurons_{when}"] = side.neurons.counts()
        rows[f"effective_{when}"] = [effective_number(part) for part in chosen]
        rows[f"gini_{when}"] = [gini(part) for part in chosen]
        here = by_layer[np.array(widths) > 0]
        flat = np.concatenate(chosen)
        depth = np.arange(len(widths)) / max(len(widths) - 1, 1)
        for name, value in (
            ("safety neurons", float(len(side.neurons))),
            ("safety mass", float(mass.sum())),
            ("effective neurons", effective_number(flat)),
            ("Gini over the mask's neurons", gini(flat)),
            ("effective layers", effective_number(here)),
            ("Gini over layers", gini(here)),
            ("mean depth of the mass, 0 to 1", float(by_layer @ depth / max(mass.sum(), 1e-300))),
        ):
            facts.setdefault(name, []).append(value)
    rows["stayed"] = [pair.both for pair in pairs]
    rows["joined"] = (after.neurons - before.neurons).counts()
    rows["left"] = (before.neurons - after.neurons).counts()
    summary = [{"quantity": n, "before": b, "after": a} for n, (b, a) in facts.items()]
    swept = before.attack is not None and after.attack is not None
    return Redistribution(
        score=score,
        layers=rows,
        summary=pd.DataFrame(summary),
        joined=after.neurons - before.neurons,
        left=before.neurons - after.neurons,
        overlap=overlap,
        halving=_both(before, after, "SWEEP") if swept else None,
        control=_both(before, after, "SWEEP-RANDOM") if swept else None,
    )


def _both(before: Side, after: Side, family: str) -> tuple[Halving, Halving]:
    assert before.attack is not None
    assert after.attack is not None
    return neurons_to_halve(before.attack, family), neurons_to_halve(after.attack, family)
