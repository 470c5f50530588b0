"""Reporters: the results of a run -> files for people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Reporter(Protocol):
    """Writes files from the results of a run.

    Order: that of the results is kept.
    Shapes and units: ``docs/reference/results.md`` describes the results; a number that is not known is None, never 0.
    ``chains``, ``pairs``, ``samples`` and ``scores`` may be larger than memory: each is an iterable, read from disk as
    often as it is iterated, without length or index. ``json.dumps(results, default=list)`` takes them in.
    Ownership: the results belong to the caller and are not changed; only files inside ``out`` are written.
    Errors: none is expected. All texts are untrusted: no markup or terminal code in them may work.
    Determinism: the same results give the same bytes.
    """

    def write(self, results: Mapping[str, Any], out: Path) -> Sequence[Path]:
        """Write into the existing folder ``out`` and return the files written.

        ``results``: JSON values, described in ``docs/reference/results.md``. All texts in it are untrusted.
        """
        ...


class ComparisonReporter(Protocol):
    """A reporter that draws two runs against each other too: what ``cai compare -o`` writes.

    Shapes and units: ``docs/reference/comparison.md``. All else is as for ``Reporter``.
    """

    def write_comparison(self, comparison: Mapping[str, Any], path: Path) -> None:
        """Write the file ``path``, whatever its name."""
        ...
