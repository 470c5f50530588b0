"""What held-out comparisons say of a preference model, beside what the length of an answer alone says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from scipy.stats import ttest_1samp

from cai_core.calibration import brier, calibration_error
from cai_core.intervals import wilson
from cai_core.types.reward import Preference

LIKE_LENGTHS = 1.25
"""Answers whose lengths in characters differ by at most this factor count as length-matched. Our choice: near enough
that length tells little, and far enough that some pairs are left."""

BASELINES = {"shorter_wins": "always the shorter answer", "longer_wins": "always the longer answer"}


def measure(pairs: Sequence[Preference], margins: Sequence[float]) -> dict[str, Any]:
    """JSON. ``groups``: one entry each for all pairs, for every source where there are several, for pairs of
    like length, and for those whose better answer is the shorter or the longer one; see ``_group``. ``differences``:
    accuracy over all pairs less that of each length baseline on the same pairs, with a 95 % interval (Student's t on
    the differences per pair).

    margins: score of A less score of B, in the order of ``pairs``.
    """
    everything = list(zip(pairs, margins, strict=True))
    names = sorted({pair.source for pair in pairs})
    chosen: list[tuple[str, Callable[[Preference], bool]]] = [("all", lambda pair: True)]
    if len(names) > 1:
        chosen += [(f"source {name or 'unnamed'}", lambda pair, name=name: pair.source == name) for name in names]
    chosen += [
        ("length-matched", _like_lengths),
        ("better is shorter", lambda pair: _better_is_longer(pair) == 0.0),
        ("better is longer", lambda pair: _better_is_longer(pair) == 1.0),
    ]
    groups = [_group(name, [row for row in everything if wanted(row[0])]) for name, wanted in chosen]
    decided = [row for row in everything if row[0].p_a != 0.5]
    differences = []
    for name, label in BASELINES.items():
        each = [_right(*row) - _baseline(name, row[0]) for row in decided]
        differences.append({"id": name, "label": label, **_mean_of(each)})
    return {"n": len(everything), "groups": [group for group in groups if group["n"]], "differences": differences}


def _group(name: str, rows: Sequence[tuple[Preference, float]]) -> dict[str, Any]:
    """accuracy, shorter_wins, longer_wins: ``value``, ``low``, ``high`` (Wilson, 95 %), ``n``, over the pairs
    whose label is not 0.5; a tie counts one half. brier, calibration_error, loss (nats): over all pairs, against the
    label as it is; null without pairs."""
    p = [_sigmoid(margin) for _, margin in rows]
    target = [pair.p_a for pair, _ in rows]
    decided = [row for row in rows if row[0].p_a != 0.5]
    losses = [pair.p_a * _softplus(-margin) + (1 - pair.p_a) * _softplus(margin) for pair, margin in rows]
    return {
        "name": name,
        "n": len(rows),
        "accuracy": _rate([_right(*row) for row in decided]),
        **{name: _rate([_baseline(name, pair) for pair, _ in decided]) for name in BASELINES},
        "brier": brier(p, target),
        "calibration_error": calibration_error(p, target),
        "loss": math.fsum(losses) / len(losses) if losses else None,
    }


def flat(heldout: dict[str, Any]) -> dict[str, float]:
    """The same as named numbers: ``heldout_accuracy``, ``heldout_accuracy_length_matched`` and so on."""
    found: dict[str, float | None] = {}
    for group in heldout["groups"]:
        end = "" if group["name"] == "all" else "_" + group["name"].replace(" ", "_").replace("-", "_")
        for key in ("brier", "calibration_error", "loss"):
            found[f"heldout_{key}{end}"] = group[key]
        for key in ("accuracy", *BASELINES):
            found[f"heldout_{key}{end}"] = group[key]["value"]
    return {key: value for key, value in found.items() if value is not None}


def _right(pair: Preference, margin: float) -> float:
    return 0.5 if margin == 0 else float((margin > 0) == (pair.p_a > 0.5))


def _better_is_longer(pair: Preference) -> float:
    """1 if the better answer is the longer one, 0 if it is the shorter, 0.5 if neither can be said."""
    a, b = len(pair.response_a), len(pair.response_b)
    return 0.5 if a == b or pair.p_a == 0.5 else float((a > b) == (pair.p_a > 0.5))


def _baseline(name: str, pair: Preference) -> float:
    longer = _better_is_longer(pair)
    return longer if name == "longer_wins" else 1 - longer


def _like_lengths(pair: Preference) -> bool:
    short, long = sorted((len(pair.response_a), len(pair.response_b)))
    return long <= LIKE_LENGTHS * short


def _rate(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = wilson(math.fsum(values), len(values))
    return {"value": math.fsum(values) / len(values), "low": low, "high": high, "n": len(values)}


def _mean_of(values: Sequence[float]) -> dict[str, Any]:
    n = len(values)
    mean = math.fsum(values) / n if n else None
    if n < 2 or len(set(values)) == 1:  # nothing varies, so nothing is known of how much it does
        return {"value": mean, "low": None, "high": None, "n": n}
    span = ttest_1samp(values, 0.0).confidence_interval(0.95)
    # Two rates cannot be further apart than 1.
    return {"value": mean, "low": max(-1.0, float(span.low)), "high": min(1.0, float(span.high)), "n": n}


def _sigmoid(margin: float) -> float:
    return 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
