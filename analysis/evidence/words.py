"""What the figures show, in sentences that are made from their numbers.

Each says what the paper says, what was found, and whether the two agree; none of it is
typed by hand.
"""

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from analysis.depth import centre_of_mass, depth_table
from analysis.overlap.composition import Composition
from analysis.overlap.pairs import PairOverlap, pair_overlap
from analysis.redistribution import Halving, Redistribution
from analysis.statistics import holm, sign_flips, two_proportions, wilson
from toolkit.neurons import NeuronSet

LEVEL = 0.05
SETTLED = 0.1
"""A curve that loses no more than this share of itself in its last step has settled."""


def p_words(p: float) -> str:
    """A p-value: ``p = 0.012``, ``p < 0.0001``."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _agrees(holds: bool) -> str:
    return "as the paper says" if holds else "unlike the paper"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def composition_words(found: Composition) -> list[str]:
    """Figure 3: is most of each layer core and shared, and does that grow with depth?"""
    totals = found.totals().set_index("class")
    count = {name: int(totals.loc[name, "neurons"]) for name in totals.index}
    layers = found.layers.dropna(subset=["core_share"])
    several = (layers["core_share"] + layers["shared_share"]).to_numpy(dtype=np.float64)
    majority = int((several > 0.5).sum())
    together = float(totals.loc[["core", "shared"], "neurons"].sum() / totals["neurons"].sum())
    expected = dict(zip(totals.index, totals["chance"].to_numpy(dtype=np.float64), strict=True))
    chance = (expected["core"] + expected["shared"]) / sum(expected.values())
    told = [
        f"Over {len(found.topics)} topics, {count['core']} neurons are core, {count['shared']} "
        f"shared and {count['specific']} specific to one topic: {together:.0%} are in more than "
        f"one, where random sets of the same sizes would have {chance:.1%}. Chance alone would "
        f"make {_number(expected['core'])} core neurons "
        f"({p_words(found.p_core)}).",
        f"Core and shared neurons are the majority in {majority} of the {len(layers)} layers "
        f'that have any, {_agrees(majority >= 0.9 * len(layers))} ("nearly all layers").',
    ]
    if len(layers) > 3 and np.ptp(several) > 0:
        trend = spearmanr(layers["layer"], several)
        rises = bool(trend.statistic > 0 and trend.pvalue < LEVEL)
        word = "rises" if rises else "falls" if trend.pvalue < LEVEL else "shows no trend"
        told.append(
            f"Their share {word} with depth (rank correlation {trend.statistic:.2f}, "
            f'{p_words(float(trend.pvalue))}), {_agrees(rises)} ("a mild rise").'
        )
    return told


def depth_words(models: dict[str, NeuronSet]) -> list[str]:
    """Figure 4: are the neurons late? The first third against the rest, by Fisher's test."""
    table = depth_table(models)
    centres = centre_of_mass(table)
    told = []
    for name, part in table.groupby("model", sort=False):
        third = np.minimum((part["depth"].to_numpy() * 3).astype(int), 2)
        parts = [
            wilson(int(part["neurons"].to_numpy()[here].sum()), int(part["width"][here].sum()))
            for here in (third == 0, third == 1, third == 2)
        ]
        early, later = parts[0], wilson(parts[1].k + parts[2].k, parts[1].n + parts[2].n)
        p = two_proportions(early, later)
        late = early.share < later.share
        if p < LEVEL:
            verdict = (
                f"sparser early than later ({p_words(p)})"
                if late
                else (f"denser early than later ({p_words(p)})")
            )
            verdict += f", {_agrees(late)}"
        else:
            verdict = (
                f"no clear difference between early and later ({p_words(p)}); the paper has one"
            )
        told.append(
            f"{name}: {parts[0].share:.2%} of the neurons in the first third of the layers, "
            f"{parts[1].share:.2%} in the middle, {parts[2].share:.2%} in the last; mean depth "
            f"{centres[name]:.2f}: {verdict}."
        )
    return told


def kway_words(table: pd.DataFrame) -> list[str]:
    """Figure 5: does overlap fall with K, and end above chance?"""
    first, last = table.iloc[0], table.iloc[-1]
    ratio = table["ratio"].to_numpy(dtype=np.float64)
    falls = bool((np.diff(ratio) <= 1e-12).all())
    above = last["ratio"] > last["ratio_chance"]
    times = last["ratio"] / last["ratio_chance"] if last["ratio_chance"] > 0 else np.inf
    size = f"{times:.3g} times" if times < 1e6 else "over a million times"
    steps = -np.diff(ratio)
    told = [
        f"The overlap ratio is {first['ratio']:.1%} for two topics (chance "
        f"{first['ratio_chance']:.2%}) and {last['ratio']:.1%} for all {last['k']:.0f}, "
        f"{size} what chance gives: "
        + ("a proportion that chance does not explain" if above else "no more than chance")
        + f', {_agrees(bool(above))} ("a non-trivial proportion").',
        f"It {'falls at every step' if falls else 'does not fall at every step'}",
    ]
    if len(steps) > 1:
        # Against what was left, not against the first step: a curve that goes to nothing, as
        # chance does, also ends in small steps.
        lost = steps[-1] / ratio[-2] if ratio[-2] > 0 else 0.0
        settles = last["ratio"] > 0 and lost <= SETTLED
        told[-1] += (
            f"; the last step takes {lost:.0%} of what was left, the first took "
            f"{steps[0] / ratio[0]:.0%}, so it "
            + (
                "has settled, as the paper says"
                if settles
                else f"has not settled with {last['k']:.0f} topics"
            )
            + ' ("converges", with ten)'
        )
    told[-1] += "."
    return told


def scale_words(scale: pd.DataFrame) -> list[str]:
    """Figure 6: does more alignment data make attacks fail?

    Prompts are paired between the two ends (sign flips), p is for all settings (Holm).
    """
    ends = []
    for setting, rows in scale.groupby("setting", sort=False):
        ordered = rows.sort_values("data")
        if len(ordered) > 1:
            ends.append((setting, ordered.iloc[0], ordered.iloc[-1]))
    # The same prompts at either end, and as many tests as settings.
    p_values = holm(
        [
            sign_flips(np.subtract(end["outcomes"], start["outcomes"], dtype=np.float64))
            for _, start, end in ends
        ]
    )
    told = []
    for (setting, start, end), p in zip(ends, p_values, strict=True):
        a = wilson(int(start["k_success"]), int(start["n"]))
        b = wilson(int(end["k_success"]), int(end["n"]))
        fewer = b.share < a.share
        verdict = f"{'fewer' if fewer else 'more'} ({p_words(p)}), {_agrees(fewer)}"
        if p >= LEVEL:
            verdict = f"no clear change ({p_words(p)}), which neither shows nor refutes the paper's"
        told.append(
            f"{setting}: {a} without the training, {b} with "
            f"{'all' if end['data'] == 1 else format(end['data'], '.0%')} of its data: {verdict}."
        )
    return told


def overlap_words(names: tuple[str, str], first: NeuronSet, second: NeuronSet) -> str:
    """Figure 7 and its like: do two sets agree, over the model and layer by layer?"""
    whole, layers = pair_overlap(first, second, names)
    asked = [row for row in layers if row.first and row.second]
    level = LEVEL / max(len(asked), 1)
    above = sum(row.p_more < level for row in asked)
    return (
        f"{names[0]} ({len(first)} neurons) and {names[1]} ({len(second)}) share {whole.both}, "
        f"where chance gives {whole.both_chance:.1f}: {_pair_words(whole)}. In {above} of the "
        f"{len(asked)} layers where both have neurons they share more than chance "
        f"(p < {LEVEL} over all of these layers, Bonferroni)."
    )


def _pair_words(pair: PairOverlap) -> str:
    word = "no clear difference from chance"
    if pair.p_more < LEVEL / 2:
        word = "more than chance"
    elif pair.p_fewer < LEVEL / 2:
        word = "fewer than chance"
    p = min(pair.p_more, pair.p_fewer)
    return (
        f"Jaccard {pair.jaccard:.3f} (chance {pair.jaccard_chance:.3f}), {word} ({p_words(p)}, "
        "one-sided)"
    )


def redistribution_words(found: Redistribution) -> list[str]:
    """What alignment moved: spread, brittleness, who joined and left."""
    facts = {name: (before, after) for name, before, after in found.summary.to_numpy()}

    def pair(name: str) -> tuple[float, float]:
        before, after = facts[name]
        return float(before), float(after)

    neurons, layers = pair("effective neurons"), pair("effective layers")
    kept = found.overlap.both
    told = [
        f"Safety mass ({found.score.upper()} of the chosen neurons) was spread over "
        f"{_number(neurons[0])} effective neurons and {_number(layers[0])} effective layers; "
        f"after alignment over {_number(neurons[1])} and {_number(layers[1])}: "
        f"{_spread(neurons)} in neurons, {_spread(layers)} in layers.",
        f"{kept} of the {found.overlap.first} neurons stayed ({kept / found.overlap.first:.0%}), "
        f"{len(found.left)} left and {len(found.joined)} joined: {_pair_words(found.overlap)}.",
    ]
    if found.halving is not None:
        before, after = found.halving
        told.append(f"Neurons to remove before refusals halve: {before} before, {after} after.")
        told.append(_sturdier(before, after))
    if found.control is not None:
        told.append(
            f"The same with random neurons: {found.control[0]} before, {found.control[1]} after."
        )
    return told


def crossing_words(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """Where the aligned model refuses less than the one before, with neurons gone.

    Args:
        before: a curve of :func:`analysis.redistribution.refusal_curve`.
        after: that of the aligned model.

    Returns:
        A sentence, or none where no share removed leaves it fewer refusals. The sets of a
        share differ by rounding at most, so the curves' points are paired by their place.
    """
    told = []
    for (_, first), (_, second) in zip(before.iterrows(), after.iterrows(), strict=False):
        if first["neurons"] and second["refused"] < first["refused"]:
            ours, theirs = (wilson(int(row["k_refused"]), int(row["n"])) for row in (second, first))
            told.append(f"{int(second['neurons'])} ({ours} against {theirs})")
    if not told:
        return []
    return [
        "With neurons removed, the aligned model refuses less often than the one before at "
        + ", ".join(told)
        + "."
    ]


def _spread(pair: tuple[float, float]) -> str:
    change = pair[1] / pair[0] - 1 if pair[0] else 0.0
    if abs(change) < 0.05:
        return "about as many"
    return f"{abs(change):.0%} {'more' if change > 0 else 'fewer'}"


def _sturdier(before: Halving, after: Halving) -> str:
    """Whether the two intervals are apart, and which way."""
    high_before = np.inf if before.high is None else before.high
    high_after = np.inf if after.high is None else after.high
    low_before = np.inf if before.low is None else before.low
    low_after = np.inf if after.low is None else after.low
    if before.refused == 0 or after.refused == 0:
        return "One of the two refuses nothing, so there is nothing to halve."
    if low_after > high_before:
        change = "clearly more removals"
    elif high_after < low_before:
        change = "clearly fewer removals"
    else:
        return "The two intervals overlap, so that neither is shown to take more removals."
    return (
        f"The aligned model takes {change} to lose half of its own refusals; whole it refuses "
        f"{after.refused:.0%}, where the one before refuses {before.refused:.0%}, so that the "
        "halves are not the same."
    )
