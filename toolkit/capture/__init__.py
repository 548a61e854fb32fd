"""Activations out of a model: one protocol, three libraries behind it."""
