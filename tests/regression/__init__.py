"""The guard: a reduced pipeline on the embedded model, compared with the committed baseline."""
