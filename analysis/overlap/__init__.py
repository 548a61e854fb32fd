"""Overlap of neuron sets and of scores, always beside what chance alone would give."""
