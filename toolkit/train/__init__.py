"""Training: preference pairs, recipes, and freezing that is exact."""
