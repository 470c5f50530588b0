"""``json``: the results as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class JsonReporter:
    """A ``Reporter`` and ``ComparisonReporter``: ``docs/reference/results.md``, ``docs/reference/comparison.md``."""

    def write(self, results: Mapping[str, Any], out: Path) -> Sequence[Path]:
        """Write ``report.json``."""
        path = out / "report.json"
        self.write_comparison(results, path)
        return [path]

    def write_comparison(self, comparison: Mapping[str, Any], path: Path) -> None:
        """Strict JSON: no NaN, keys in the order of the results, lone surrogates as U+FFFD."""
        text = json.dumps(comparison, ensure_ascii=False, allow_nan=False, indent=1)
        text = re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
        path.write_text(text + "\n", encoding="utf-8")
