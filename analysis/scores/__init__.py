"""Scores: a number for every neuron, under a name."""
