"""Corpora, and the windows and questions that are chosen from them."""
