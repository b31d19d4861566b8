"""Prunecast: prune a decoder-only language model by forecasting what each cut costs.

One room per DVC stage, in the order in which data passes:
sample -> evaluate -> build_dataset -> train_predictor -> search -> export.
"""
