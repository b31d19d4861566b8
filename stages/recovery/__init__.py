"""Recovery: what was pruned is trained on, so that it comes nearer to the dense model again."""
