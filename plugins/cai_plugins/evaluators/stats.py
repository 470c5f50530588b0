"""Intervals. Rates by Wilson, means by Student's t; nothing has an error of 0 because all items agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy.stats import t as student

from cai_core.intervals import wilson

__all__ = ["clustered_mean_interval", "clustered_rate_interval", "mean_interval", "wilson"]

ROUNDING = 1e-12  # of the largest value: what the mean of equal values may be off by


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's t 95 % interval of the mean; (None, None) for fewer than two values, and where all are equal."""
    return clustered_mean_interval({str(i): value for i, value in enumerate(values)}, {})


def clustered_mean_interval(
    values: Mapping[str, float], cluster: Mapping[str, str]
) -> tuple[float | None, float | None]:
    """Student's t 95 % interval of the mean of items that come in clusters (an item that ``cluster`` lacks is its own).

    The variance is that between clusters (the sandwich estimator with the factor C / (C - 1), Cameron and Miller 2015,
    equation 11 for a mean), with C - 1 degrees of freedom; with one item in each cluster it is the ordinary interval.
    (None, None) for fewer than two clusters, and where they differ by rounding alone: an interval of no width would
    claim that there is no error.
    """
    count, variance = _between(values, cluster)
    if variance is None:
        return None, None
    mean = math.fsum(values.values()) / len(values)
    if math.sqrt(variance) <= ROUNDING * max(abs(value) for value in values.values()):
        return None, None
    half = float(student.ppf(0.975, count - 1)) * math.sqrt(variance)
    return mean - half, mean + half


def clustered_rate_interval(values: Mapping[str, float], cluster: Mapping[str, str]) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate whose items come in clusters, at the effective number of items. At least one
    value.

    That is n over the design effect (the variance of the mean between clusters over that of independent items), times
    the squared ratio of Student's quantiles for the items' and the clusters' degrees of freedom (Korn and Graubard 1998
    for Clopper-Pearson, Dean and Pagano 2015 for Wilson), and at most n. For the design effect alone one cluster of
    successes and one of failures, both of the mean size, are added (our choice, in the manner of Agresti and Coull):
    without them a rate near 0 or 1 was covered in 90 % of simulated evaluations instead of 95 %, and one at 0 or 1 has
    no variance to estimate. One item in each cluster gives Wilson's interval of n.
    """
    n = len(values)
    total = math.fsum(values.values())
    size = n / len({cluster.get(item, f"/{item}") for item in values})
    if size == 1:
        return wilson(total, n)
    sums: dict[str, tuple[int, float]] = {"success": (0, 0.0), "failure": (0, 0.0)}
    for item, value in values.items():
        key = f"c{cluster[item]}" if item in cluster else f"i{item}"
        count, before = sums.get(key, (0, 0.0))
        sums[key] = (count + 1, before + value)
    everything = n + 2 * size
    mean = (total + size) / everything
    independent = math.fsum((value - mean) ** 2 for value in values.values())
    independent = (independent + size * ((1 - mean) ** 2 + mean**2)) / (everything * (everything - 1))
    squares = math.fsum((value - count * mean) ** 2 for count, value in sums.values())
    squares += size**2 * ((1 - mean) ** 2 + mean**2)
    clusters = len(sums)
    between = clusters / (clusters - 1) * squares / everything**2
    ratio = float(student.ppf(0.975, everything - 1) / student.ppf(0.975, clusters - 1))
    return _wilson_at(total / n, min(float(n), n * independent / between * ratio**2))


def _between(values: Mapping[str, float], cluster: Mapping[str, str]) -> tuple[int, float | None]:
    """Number of clusters, and the variance of the mean between them; None for fewer than two."""
    mean = math.fsum(values.values()) / len(values) if values else 0.0
    sums: dict[str, list[float]] = {}
    for item, value in values.items():
        sums.setdefault(f"c{cluster[item]}" if item in cluster else f"i{item}", []).append(value - mean)
    count = len(sums)
    if count < 2:
        return count, None
    return count, count / (count - 1) * math.fsum(math.fsum(parts) ** 2 for parts in sums.values()) / len(values) ** 2


def _wilson_at(p: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a rate for a number of items that need not be whole."""
    z2 = 1.959963984540054**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (0.0 if p == 0 else centre - half), (1.0 if p == 1 else centre + half)
