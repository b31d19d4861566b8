"""Predictor to narrowed space, finalists, and the best measured architecture."""
