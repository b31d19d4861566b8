"""Measuring architectures: what one is worth, in which order many run, who runs them, and the record."""
