"""The paper-scale study: every method at equal real evaluations, on the real corpora."""
