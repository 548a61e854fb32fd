"""What the numbers mean: scores, selections, statistics, the store, the study."""
