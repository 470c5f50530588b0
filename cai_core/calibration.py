"""How well probabilities that A is preferred fit what was preferred. Nothing here depends on which answer is A."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cai_core.intervals import wilson

BINS = 10  # our choice; confidence lies in [0.5, 1], so a bin is 0.05 wide


def accuracy(p: Sequence[float], target: Sequence[float]) -> float | None:
    """Share of pairs with a preferred answer (target not 0.5) on whose side p is; p = 0.5 counts one half."""
    found = [0.5 if q == 0.5 else float((q > 0.5) == (t > 0.5)) for q, t in zip(p, target, strict=True) if t != 0.5]
    return math.fsum(found) / len(found) if found else None


def brier(p: Sequence[float], target: Sequence[float]) -> float | None:
    """Mean squared distance (Brier 1950); the target may itself be a probability."""
    return math.fsum((q - t) ** 2 for q, t in zip(p, target, strict=True)) / len(p) if p else None


def calibration_error(p: Sequence[float], target: Sequence[float]) -> float | None:
    """Expected calibration error (Guo et al. 2017) of the preferred side: pairs are binned by max(p, 1 - p), and in
    each bin the mean confidence is compared with the mean target of that side. Where p = 0.5 neither side is preferred;
    the mean of the two targets, one half, is compared."""
    bins = _binned(p, target)
    total = sum(len(entries) for entries in bins.values())
    if not total:
        return None
    return math.fsum(abs(math.fsum(c - r for c, r in entries)) for entries in bins.values()) / total


def reliability(p: Sequence[float], target: Sequence[float]) -> list[dict[str, float]]:
    """The bins of ``calibration_error`` that are not empty (the paper's Figure 9): ``n``, the mean ``confidence`` of
    the preferred side, and how often it is ``right``, with Wilson's interval ``low``, ``high``."""
    found = []
    for _, entries in sorted(_binned(p, target).items()):
        n, right = len(entries), math.fsum(r for _, r in entries)
        low, high = wilson(right, n)
        confidence = math.fsum(c for c, _ in entries) / n
        found.append({"n": n, "confidence": confidence, "right": right / n, "low": low, "high": high})
    return found


def length_slope(p: Sequence[float], a: Sequence[float], b: Sequence[float]) -> float | None:
    """Change of P(A) when A is twice as long as B: least squares of p - 0.5 on log2 of the ratio of characters, through
    the origin (two answers of one length have no length preference). ``a``, ``b``: the characters of the answers. None
    where all lengths are equal."""
    x = [math.log2((one + 1) / (other + 1)) for one, other in zip(a, b, strict=True)]
    total = math.fsum(v * v for v in x)
    return math.fsum(v * (q - 0.5) for v, q in zip(x, p, strict=True)) / total if total else None


def _binned(p: Sequence[float], target: Sequence[float]) -> dict[int, list[tuple[float, float]]]:
    """Bin -> confidence and target of the preferred side of each pair."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for q, t in zip(p, target, strict=True):
        confidence, right = (0.5, 0.5) if q == 0.5 else (q, t) if q > 0.5 else (1 - q, 1 - t)
        bins.setdefault(min(int((confidence - 0.5) * 2 * BINS), BINS - 1), []).append((confidence, right))
    return bins
