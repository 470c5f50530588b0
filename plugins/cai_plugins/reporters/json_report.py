"""``json``: the results as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        with path.open("w", encoding="utf-8") as file:
            for part in _parts(comparison):
                file.write(re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", part))


def _parts(found: Mapping[str, Any]) -> Iterator[str]:
    """What ``json.dumps(found, indent=1)`` gives, one row of a table at a time."""
    before = "{"
    for key, value in found.items():
        yield f"{before}\n {_json(key)}: "
        before = ","
        if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
            yield _json(value).replace("\n", "\n ")
            continue
        opened = "["
        for row in value:
            yield f"{opened}\n  " + _json(row).replace("\n", "\n  ")
            opened = ","
        yield "[]" if opened == "[" else "\n ]"
    yield "\n}\n" if before == "," else "{}\n"


def _json(found: Any) -> str:
    return json.dumps(found, ensure_ascii=False, allow_nan=False, indent=1)
