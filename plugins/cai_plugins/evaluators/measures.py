"""Rows of an evaluator -> ``Metric`` objects: one rate or one mean over the units that could be scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from cai_core.types.evaluator import EvalRow, Metric
from cai_plugins.evaluators.stats import mean_interval, wilson

Direction = Literal["higher", "lower", "none"]


def rate(
    name: str, label: str, model: str, rows: Sequence[EvalRow], key: str, *, direction: Direction, note: str = ""
) -> Metric:
    """The mean of ``values[key]`` in [0, 1] (a tie is one half) with Wilson's interval."""
    per_item = {row.id: float(row.values[key]) for row in rows if row.failure is None}
    n, total = len(per_item), math.fsum(per_item.values())
    low, high = wilson(total, n) if n else (None, None)
    value = total / n if n else None
    failed = len(rows) - n
    return Metric(
        name, label, model, value, low, high, n, failed, "Wilson 95 %", "rate", direction, note, per_item=per_item
    )


def mean(
    name: str,
    label: str,
    model: str,
    rows: Sequence[EvalRow],
    key: str,
    *,
    unit: Literal["score", "count"],
    direction: Direction,
    note: str = "",
) -> Metric:
    """The mean of ``values[key]`` with Student's t interval."""
    per_item = {row.id: float(row.values[key]) for row in rows if row.failure is None}
    n = len(per_item)
    low, high = mean_interval(list(per_item.values()))
    value = math.fsum(per_item.values()) / n if n else None
    failed = len(rows) - n
    return Metric(
        name, label, model, value, low, high, n, failed, "Student's t 95 %", unit, direction, note, per_item=per_item
    )


def by_model(rows: Sequence[EvalRow]) -> dict[str, list[EvalRow]]:
    """Rows per model, models in the order in which they appear."""
    found: dict[str, list[EvalRow]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(row)
    return found
