"""Exports in other programs: vLLM, and other releases of transformers, each in an environment of its own."""
