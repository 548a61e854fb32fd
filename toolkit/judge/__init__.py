"""Judges: a response in, a verdict and its reason out."""
