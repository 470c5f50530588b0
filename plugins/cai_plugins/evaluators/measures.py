"""Rows of an evaluator -> ``Metric`` objects: one rate or one mean over the units that could be scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from cai_core.types.evaluator import EvalRow, Metric
from cai_plugins.evaluators.stats import clustered_mean_interval, clustered_rate_interval, wilson

Direction = Literal["higher", "lower", "none"]


def rate(
    name: str,
    label: str,
    model: str,
    rows: Sequence[EvalRow],
    key: str,
    *,
    direction: Direction,
    note: str = "",
    cluster: Mapping[str, str] | None = None,
) -> Metric:
    """The mean of ``values[key]`` in [0, 1] (a tie is one half) with Wilson's interval. cluster: unit id -> cluster,
    for items that are not independent."""
    per_item = {row.id: float(row.values[key]) for row in rows if row.failure is None}
    n, total = len(per_item), math.fsum(per_item.values())
    groups = {item: cluster[item] for item in per_item if item in cluster} if cluster else {}
    clustered = len(set(groups.values())) < len(groups)
    low, high = (clustered_rate_interval(per_item, groups) if clustered else wilson(total, n)) if n else (None, None)
    return Metric(
        name,
        label,
        model,
        total / n if n else None,
        low,
        high,
        n,
        len(rows) - n,
        f"Wilson 95 %, {len(set(groups.values()))} clusters" if clustered else "Wilson 95 %",
        "rate",
        direction,
        note,
        per_item=per_item,
        cluster=groups if clustered else {},
    )


def mean(
    name: str,
    label: str,
    model: str,
    rows: Sequence[EvalRow],
    key: str,
    *,
    unit: Literal["rate", "score", "count"],
    direction: Direction,
    note: str = "",
    cluster: Mapping[str, str] | None = None,
) -> Metric:
    """The mean of ``values[key]`` with Student's t interval; of a rate it ends at 0 and 1. cluster: as for ``rate``.

    Where all values are equal nothing is known of their spread, which is not to say that there is none. A rate then has
    Wilson's interval, as if each item were 0 or 1 (no values of that mean spread more); others have none, and
    ``note`` says why.
    """
    per_item = {row.id: float(row.values[key]) for row in rows if row.failure is None}
    n = len(per_item)
    groups = {item: cluster[item] for item in per_item if item in cluster} if cluster else {}
    clustered = len(set(groups.values())) < len(groups)
    interval = f"Student's t 95 %, {len(set(groups.values()))} clusters" if clustered else "Student's t 95 %"
    low, high = clustered_mean_interval(per_item, groups if clustered else {})
    if low is None and n and unit == "rate":
        parts = len(set(groups.values())) + n - len(groups) if clustered else n
        value = math.fsum(per_item.values()) / n
        low, high = wilson(min(max(value, 0.0), 1.0) * parts, parts)
        interval = f"Wilson 95 %, {parts} clusters" if clustered else "Wilson 95 %"
    elif low is None and n > 1:
        note = f"{note} No interval: the values do not differ.".lstrip()
    elif unit == "rate" and low is not None and high is not None:
        low, high = max(0.0, low), min(1.0, high)
    return Metric(
        name,
        label,
        model,
        math.fsum(per_item.values()) / n if n else None,
        low,
        high,
        n,
        len(rows) - n,
        interval if low is not None else "",
        unit,
        direction,
        note,
        per_item=per_item,
        cluster=groups if clustered else {},
    )


def by_model(rows: Sequence[EvalRow]) -> dict[str, list[EvalRow]]:
    """Rows per model, models in the order in which they appear."""
    found: dict[str, list[EvalRow]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(row)
    return found
