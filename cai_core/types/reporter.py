"""Reporters: the results of a run -> files for people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Reporter(Protocol):
    """Writes files from the results of a run. The same results give the same bytes."""

    def write(self, results: Mapping[str, Any], out: Path) -> Sequence[Path]:
        """Write into the existing folder ``out`` and return the files written.

        ``results``: JSON values, described in ``docs/reference/results.md``. All texts in it are untrusted.
        """
        ...
