"""Paired comparisons between two models on the same items, in plain Python (the core has no numpy).

Binary metrics: exact McNemar test; the interval of the difference by Agresti and Min 2005, which never has length 0
because no item changed. Others: sign-flip permutation test, bootstrap over items. Holm's correction over all
comparisons of a report. Checked against scipy and by simulation in the tests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

RESAMPLES = 4000  # standard error of a 2.5 % quantile of p about 0.25 %; our choice, a second for a whole report
Z_ALPHA, Z_POWER = 1.959964, 0.841621  # two-sided 5 % and power 80 %, the field's custom


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p for ``only_a`` items where A alone scores and ``only_b`` where B alone does."""
    n = only_a + only_b
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    return float(min(1.0, 2 * tail))


def sign_flip(differences: Sequence[float], seed: int) -> float:
    """Two-sided p of the mean difference under random signs; exact up to 12 items, else ``RESAMPLES`` draws."""
    observed = abs(sum(differences)) - 1e-12
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


def bootstrap_mean(differences: Sequence[float], seed: int) -> tuple[float, float]:
    """Percentile 95 % interval of the mean over items drawn with replacement."""
    rng = random.Random(seed)
    n = len(differences)
    means = sorted(sum(rng.choices(differences, k=n)) / n for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]


def agresti_min(only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference (b - a) / n of paired proportions: Wald's after adding half an item to each of
    the four cells (Agresti and Min 2005, Statistics in Medicine 24:729)."""
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


def compare(
    metric: str, label: str, a: str, b: str, first: Mapping[str, float], second: Mapping[str, float], seed: int
) -> dict[str, Any] | None:
    """B minus A on the items that both have, or None without any."""
    items = sorted(set(first) & set(second))
    if not items:
        return None
    differences = [second[i] - first[i] for i in items]
    n = len(items)
    mean = sum(differences) / n
    binary = all(value in (0.0, 1.0) for i in items for value in (first[i], second[i]))
    if binary:
        only_a, only_b = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
        p = mcnemar_exact(only_a, only_b)
        low, high = agresti_min(only_a, only_b, n)
    else:
        p = sign_flip(differences, seed)
        low, high = bootstrap_mean(differences, seed)
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1) if n > 1 else 0.0
    if binary and variance == 0:
        variance = 1 / n  # no item changed: as if one had, rather than a power of 100 %
    return {
        "metric": metric,
        "label": label,
        "a": a,
        "b": b,
        "difference": mean,
        "low": low,
        "high": high,
        "n": n,
        "p": p,
        "test": "exact McNemar" if binary else "sign-flip permutation",
        "minimum_detectable": (Z_ALPHA + Z_POWER) * math.sqrt(variance / n) if n > 1 else None,
    }


def compare_all(metrics: Sequence[Mapping[str, Any]], models: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Every metric of every later model against the first one; ``conclusive`` after Holm at 5 %."""
    by_key = {(m["id"], m["model"]): m for m in metrics}
    found = []
    for metric_id in dict.fromkeys(m["id"] for m in metrics):
        for other in models[1:]:
            a, b = by_key.get((metric_id, models[0])), by_key.get((metric_id, other))
            if a and b:
                row = compare(metric_id, a["label"], models[0], other, a["per_item"], b["per_item"], seed)
                if row:
                    found.append(row)
    for row, adjusted in zip(found, holm([row["p"] for row in found]), strict=True):
        row["p_holm"] = adjusted
        row["conclusive"] = adjusted < 0.05
    return found
