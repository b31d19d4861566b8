"""Model families: where each keeps its weights, what its configuration means, and what a layer of it is."""
