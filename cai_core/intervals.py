"""Intervals of rates. Nothing has an error of 0 because all items agree."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # two-sided 95 %


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a rate (Wilson 1927). Ties may count as half successes. ``n`` > 0."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no rate")
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and 1 rounding would leave the bound off by a few units in the last place.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)
