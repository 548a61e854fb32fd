"""Scores: a number for every neuron, under a name; one file each, behind one registry."""

from analysis.scores.registry import Score, all_scores, evaluate, find_score, score

# Each registers its score; the order is the one that listings show.
from analysis.scores import (  # isort: skip
    effect_size,
    activation_shift,
    two_sample,
    rank_sum,
    neurostrike,
    single_neuron,
    direction,
    sntune,
    wanda,
    snip,
    change,
)

__all__ = [
    "Score",
    "activation_shift",
    "all_scores",
    "change",
    "direction",
    "effect_size",
    "evaluate",
    "find_score",
    "neurostrike",
    "rank_sum",
    "score",
    "single_neuron",
    "snip",
    "sntune",
    "two_sample",
    "wanda",
]
