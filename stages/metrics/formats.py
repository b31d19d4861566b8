"""How values are written for people."""

from __future__ import annotations


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent, with the sign of mathematics.

    >>> percent(0.2862), percent(-0.01)
    ('28.6 %', '−1.0 %')
    """
    return f"{100 * fraction:.{digits}f} %".replace("-", "−")
