"""The single-neuron score (2605.08513): gradient of refusal times the gap between prompts."""

import numpy as np

from analysis.scores.registry import score
from toolkit.capture.moments import Vector
from toolkit.capture.token_means import TokenMeans


@score(
    "gradient",
    reads="gradients",
    title="gradient of refusal times the gap in activation, largest over the answer's opening",
    source="A Single Neuron Is Sufficient (2605.08513)",
)
def single_neuron(harmful: TokenMeans, harmless: TokenMeans) -> Vector:
    """First-order fall in refusal if a neuron were as on harmless prompts, ``[width]``.

    The largest over the tokens after the message of ``G * (mean on harmless - mean on
    harmful)``, for G the mean gradient of ``-log(p / (1 - p))`` on harmful prompts plus
    that on harmless ones. Minus infinity for a neuron that is louder on harmless prompts
    at every token: the paper leaves it out.
    """
    best: Vector = token_scores(harmful, harmless).max(axis=0)
    return best


def token_scores(harmful: TokenMeans, harmless: TokenMeans) -> Vector:
    """The score at each token after the message, ``[tail, width]``."""
    unsafe, safe = harmful.activation, harmless.activation
    scores = (harmful.gradient + harmless.gradient) * (safe - unsafe)
    return np.where(np.abs(unsafe) <= np.abs(safe), -np.inf, scores)
