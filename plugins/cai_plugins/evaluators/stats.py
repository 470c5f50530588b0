"""Intervals. Rates by Wilson, means by Student's t; nothing has an error of 0 because all items agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import t as student

from cai_core.intervals import wilson

__all__ = ["mean_interval", "wilson"]


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's t 95 % interval of the mean; (None, None) for fewer than two values."""
    n = len(values)
    if n < 2:
        return None, None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(student.ppf(0.975, n - 1)) * math.sqrt(variance / n)
    return mean - half, mean + half
