"""Paired comparisons between two models on the same items, in plain Python (the core has no numpy).

Binary metrics: exact McNemar test; the interval of the difference by Agresti and Min 2005, which never has length 0
because no item changed. Others: sign-flip permutation test, bootstrap over items. Items that belong together (turns of
one conversation, variants of one question) are flipped and drawn together. Holm's correction over all comparisons of a
report. Checked against scipy and by simulation in the tests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

RESAMPLES = 4000  # standard error of a 2.5 % quantile of p about 0.25 %; our choice, a second for a whole report
Z_ALPHA, Z_POWER = 1.959964, 0.841621  # two-sided 5 % and power 80 %, the field's custom
# From so many independent parts on the normal approximation takes the place of resampling: our choice; the two agree to
# three digits there, and a resample of 100,000 items in plain Python takes minutes.
LARGE = 5000
ROUNDING = 1e-9  # of the largest value: what differs by less is equal, and sums in another order are the same


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p for ``only_a`` items where A alone scores and ``only_b`` where B alone does."""
    n = only_a + only_b
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    return float(min(1.0, 2 * tail))


def sign_flip(differences: Sequence[float], seed: int) -> float:
    """Two-sided p of the mean difference under random signs; exact up to 12 items, else ``RESAMPLES`` draws."""
    observed = abs(math.fsum(differences)) - ROUNDING * math.fsum(map(abs, differences))
    if len(differences) <= 12:
        totals = [0.0]
        for d in differences:
            totals = [t + s for t in totals for s in (d, -d)]
        return sum(abs(t) >= observed for t in totals) / len(totals)
    rng = random.Random(seed)
    hits = 0
    for _ in range(RESAMPLES):
        bits = rng.getrandbits(len(differences))
        total = sum(d if bits >> i & 1 else -d for i, d in enumerate(differences))
        hits += abs(total) >= observed
    return (hits + 1) / (RESAMPLES + 1)


def bootstrap_mean(differences: Sequence[float], seed: int, sizes: Sequence[int] | None = None) -> tuple[float, float]:
    """95 % interval of the mean over items, from parts drawn with replacement.

    differences: the total of each independent part; ``sizes`` the number of its items, 1 each by default. Percentiles
    of the bootstrap, set further apart as Hesterberg 2015 does (The American Statistician 69:371, expanded percentile):
    the bare percentiles are too narrow by about sqrt((n - 1) / n) and by what Student's t is wider than the normal.
    Under ten parts it still covers less than 95 % where few parts carry most of the difference.
    """
    rng = random.Random(seed)
    n = len(differences)
    parts = list(zip(differences, sizes or [1] * n, strict=True))
    if n < 2:
        value = differences[0] / parts[0][1]
        return value, value
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.choices(parts, k=n)
        means.append(sum(total for total, _ in drawn) / sum(size for _, size in drawn))
    means.sort()
    tail = 0.5 * math.erfc(math.sqrt(n / (n - 1)) * student(n - 1) / math.sqrt(2))
    rank = max(0, math.floor(tail * RESAMPLES))
    return means[rank], means[RESAMPLES - 1 - rank]


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t by its expansion in 1/degrees (Abramowitz and Stegun 26.7.5); off by less than
    0.1 % from five degrees of freedom on."""
    z = Z_ALPHA
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / degrees**power for power, term in enumerate(terms))


def agresti_min(only_a: float, only_b: float, n: int) -> tuple[float, float]:
    """95 % interval of the difference (b - a) / n of paired proportions: Wald's after adding half an item to each of
    the four cells (Agresti and Min 2005, Statistics in Medicine 24:729). Parts of items count as such: the variance of
    values between 0 and 1 is at most that of items that are 0 or 1."""
    a, b, total = only_a + 0.5, only_b + 0.5, n + 2
    centre = (b - a) / total
    half = Z_ALPHA * math.sqrt(a + b - (b - a) ** 2 / total) / total
    return max(-1.0, centre - half), min(1.0, centre + half)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted = [0.0] * len(values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = running
    return adjusted


def effect_size(first: Sequence[float], second: Sequence[float], *, binary: bool) -> tuple[str, float | None]:
    """Name and size of the effect (Cohen 1988): h, the difference of two rates on the arcsine scale, or d of paired
    values, the mean difference over its standard deviation (None where it does not vary)."""
    n = len(first)
    if binary:
        angles = [2 * math.asin(math.sqrt(sum(values) / n)) for values in (first, second)]
        return "Cohen's h", angles[1] - angles[0]
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean = sum(differences) / n
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1)) if n > 1 else 0.0
    varies = deviation > ROUNDING * max(map(abs, (*first, *second)))
    return "Cohen's d", mean / deviation if varies else None


def compare(
    metric: str,
    label: str,
    a: str,
    b: str,
    first: Mapping[str, float],
    second: Mapping[str, float],
    seed: int,
    clusters: Mapping[str, str] | None = None,
    *,
    bounded: bool = False,
) -> dict[str, Any] | None:
    """B minus A on the items that both have, or None without any. ``clusters``: item -> what it belongs to; an item
    that it lacks stands alone. ``bounded``: whether values lie in [0, 1].

    Where all items (or clusters) differ by the same, resampling knows no error, and there is one: of bounded values the
    interval is that of as many independent items; of others ``low``, ``high`` and ``minimum_detectable`` are None.
    """
    items = sorted(set(first) & set(second))
    if not items:
        return None
    differences = [second[i] - first[i] for i in items]
    n = len(items)
    mean = sum(differences) / n
    binary = all(value in (0.0, 1.0) for i in items for value in (first[i], second[i]))
    groups: dict[tuple[bool, str], list[float]] = {}
    for item, difference in zip(items, differences, strict=True):
        own = (clusters or {}).get(item)
        groups.setdefault((own is not None, item if own is None else own), []).append(difference)
    totals, sizes = [sum(group) for group in groups.values()], [len(group) for group in groups.values()]
    parts = len(totals)
    # The variance of the mean, robust to what items of one part share: a ratio estimator over parts.
    spread = sum((total - mean * size) ** 2 for total, size in zip(totals, sizes, strict=True))
    variance = parts / (parts - 1) * spread / n**2 if parts > 1 else 0.0
    only_a, only_b = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    low: float | None
    high: float | None
    if binary and parts == n:
        p, test = mcnemar_exact(only_a, only_b), "exact McNemar"
        low, high = agresti_min(only_a, only_b, n)
    elif parts > LARGE:
        half = Z_ALPHA * math.sqrt(variance)
        p, test = _normal(mean, variance), "normal approximation"
        low, high = mean - half, mean + half
    else:
        p, test = sign_flip(totals, seed), "sign-flip permutation"
        low, high = bootstrap_mean(totals, seed, sizes)
    least: float | None = math.sqrt(variance)
    largest = max(abs(value) for i in items for value in (first[i], second[i]))
    if parts == 1 or math.sqrt(variance) <= ROUNDING * largest:  # all agree, so that resampling knows no error
        least = None
        if binary or bounded:
            if parts < n or not binary:
                changed = abs(mean) * parts
                low, high = agresti_min(changed if mean < 0 else 0, changed if mean > 0 else 0, parts)
            least = 1 / parts  # as if one had differed, rather than a power of 100 %
        else:
            low = high = None
    name, effect = effect_size([first[i] for i in items], [second[i] for i in items], binary=binary)
    return {
        "metric": metric,
        "label": label,
        "a": a,
        "b": b,
        "difference": mean,
        "low": low,
        "high": high,
        "n": n,
        "clusters": parts if parts < n else None,
        "raised": only_b,
        "lowered": only_a,
        "p": p,
        "test": test if parts == n else f"{test} by cluster",
        "effect": effect,
        "effect_name": name,
        "minimum_detectable": (Z_ALPHA + Z_POWER) * least if least is not None and parts > 1 else None,
    }


def _normal(mean: float, variance: float) -> float:
    return math.erfc(abs(mean) / math.sqrt(2 * variance)) if variance else float(mean == 0)


def compare_all(metrics: Sequence[Mapping[str, Any]], models: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Every metric of every later model against the first one; ``conclusive`` after Holm at 5 %."""
    by_key = {(m["id"], m["model"]): m for m in metrics}
    found = []
    for metric_id in dict.fromkeys(m["id"] for m in metrics):
        for other in models[1:]:
            a, b = by_key.get((metric_id, models[0])), by_key.get((metric_id, other))
            if a and b:
                clusters = {**(a.get("cluster") or {}), **(b.get("cluster") or {})}
                items = (a["per_item"], b["per_item"])
                bounded = a.get("unit") == "rate"
                row = compare(metric_id, a["label"], models[0], other, *items, seed, clusters, bounded=bounded)
                if row:
                    found.append(row)
    conclude(found)
    return found


def conclude(rows: Sequence[dict[str, Any]]) -> None:
    """Add ``p_holm``, corrected over all ``rows``, and ``conclusive``: whether it is below 5 %."""
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
        row["conclusive"] = adjusted < 0.05
