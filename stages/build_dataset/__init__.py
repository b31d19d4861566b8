"""Pairs to a typed table of features and targets."""
