"""Benchmarks: run by hand, never by the tests. Figures come with the machine's limits."""
