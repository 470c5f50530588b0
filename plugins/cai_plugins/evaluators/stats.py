"""Intervals. Rates by Wilson, means by Student's t; nothing has an error of 0 because all items agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import t as student

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


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's t 95 % interval of the mean; (None, None) for fewer than two values."""
    n = len(values)
    if n < 2:
        return None, None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(student.ppf(0.975, n - 1)) * math.sqrt(variance / n)
    return mean - half, mean + half
