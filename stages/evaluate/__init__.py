"""Measure architectures: an elastic network, its corpora, and a journal of results."""
