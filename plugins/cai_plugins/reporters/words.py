"""Numbers as people read them. A number that is not known is "unknown", never 0."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# A terminal or an editor obeys the first; no page or table needs them. Halves of surrogate pairs cannot be written.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(text: str) -> str:
    """``text`` with control characters, but for tabs and line breaks, and lone surrogates shown as U+FFFD."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def value(number: float | None, unit: str | None) -> str:
    """A rate in per cent, a count with one decimal, a score with three."""
    if number is None:
        return "unknown"
    if unit == "rate":
        return f"{100 * number:.1f} %"
    return f"{number:.1f}" if unit == "count" else f"{number:.3f}"


def signed(number: float | None, unit: str | None) -> str:
    """The same for differences; rates differ in percentage points."""
    if number is None:
        return "unknown"
    if unit == "rate":
        return f"{100 * number:+.1f} pp"
    return f"{number:+.1f}" if unit == "count" else f"{number:+.3f}"


def size(number: float | None, unit: str | None) -> str:
    """The same without a sign: how large a difference is."""
    return signed(number, unit).removeprefix("+")


def interval(found: Mapping[str, Any], unit: str | None) -> str:
    """[low, high], or that there is none."""
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return "[no interval]"
    if unit == "rate":
        return f"[{100 * low:.1f}, {100 * high:.1f}]"
    digits = 1 if unit == "count" else 3
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def span(found: Mapping[str, Any], unit: str | None) -> str:
    """A difference and its [low, high], or that there is none."""
    ends = "no interval"
    if found["low"] is not None and found["high"] is not None:
        ends = f"{signed(found['low'], unit)}, {signed(found['high'], unit)}"
    return f"{signed(found['difference'], unit)} [{ends}]"


def seconds(number: float | None) -> str:
    """Seconds, or minutes from 100 seconds on."""
    if number is None:
        return "unknown"
    return f"{number:.1f} s" if number < 100 else f"{int(number) // 60} min {int(number) % 60} s"


def memory(megabytes: float | None) -> str:
    """Gigabytes."""
    return "" if megabytes is None else f"{megabytes / 1000:.1f} GB"


def p_value(number: float) -> str:
    """Three digits; never 0."""
    return f"{number:.3f}" if number >= 0.001 else "< 0.001"
