"""What touches a model: loading, capture, intervention, generation, judging, training."""
