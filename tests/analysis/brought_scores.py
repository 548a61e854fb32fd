"""Scores as a package of somebody else's would bring them."""

import numpy as np

from analysis.scores import score
from toolkit.capture.moments import Moments


@score("loudness", reads="moments")
def loudness(harmful: Moments, harmless: Moments) -> np.ndarray:
    """Absolute mean on harmful prompts."""
    return np.abs(harmful.mean)
