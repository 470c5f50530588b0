"""``json``: the results as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class JsonReporter:
    """A ``Reporter`` that writes ``report.json``; its form is described in ``docs/reference/results.md``."""

    def write(self, results: Mapping[str, Any], out: Path) -> Sequence[Path]:
        """Strict JSON: no NaN, keys in the order of the results."""
        path = out / "report.json"
        text = json.dumps(results, ensure_ascii=False, allow_nan=False, indent=1)
        # A lone surrogate of a broken model output cannot be written as UTF-8.
        path.write_text(text.encode("utf-8", "replace").decode("utf-8") + "\n", encoding="utf-8")
        return [path]
