"""Measurements, run by hand: time and memory against the targets."""
