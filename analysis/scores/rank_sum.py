"""Rank-sum AUC (Wilcoxon 1945; Mann and Whitney 1947): a shift without a distribution."""

import numpy as np
import numpy.typing as npt

from analysis.scores.registry import score
from toolkit.capture.moments import Vector

Activations = npt.NDArray[np.floating]


def _ranks(harmful: Activations, harmless: Activations) -> Vector:
    """Ranks over both sets, ties sharing their mean, ``[prompts, width]``."""
    from scipy.stats import rankdata

    ranks: Vector = rankdata(np.concatenate([harmful, harmless]), axis=0)
    return ranks


def rank_sum_p(harmful: Activations, harmless: Activations) -> Vector:
    """p-values that harmful prompts rank no higher, one-sided, ``[width]``.

    The normal approximation with corrections for ties and continuity; 1 for a neuron
    that never varies.
    """
    from scipy.special import ndtr

    n, m = len(harmful), len(harmless)
    total = n + m
    ranks = _ranks(harmful, harmless)
    u = ranks[:n].sum(axis=0) - n * (n + 1) / 2
    ordered = np.sort(ranks, axis=0)
    ties = np.zeros(ranks.shape[1])
    for place, column in enumerate(ordered.T):
        changes = np.flatnonzero(np.diff(column, prepend=-1.0, append=-1.0))
        lengths = np.diff(changes).astype(np.float64)
        ties[place] = (lengths**3 - lengths).sum()
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (u - n * m / 2 - 0.5) / np.sqrt(variance)
    return np.where(variance > 0, ndtr(-z), 1.0)


@score(
    "auc",
    reads="activations",
    title="share of pairs in which the harmful prompt's activation is the higher",
    source="Mann and Whitney 1947",
    neutral=0.5,
    p_value=rank_sum_p,
)
def rank_sum_auc(harmful: Activations, harmless: Activations) -> Vector:
    """Area under the ROC curve of each neuron as a detector of harm, ``[width]``, 0 to 1.

    The share of pairs of a harmful and a harmless prompt in which the harmful one has the
    higher activation, ties counted half. 0.5 says nothing.
    """
    n, m = len(harmful), len(harmless)
    auc: Vector = (_ranks(harmful, harmless)[:n].sum(axis=0) - n * (n + 1) / 2) / (n * m)
    return auc
