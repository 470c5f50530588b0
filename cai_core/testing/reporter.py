"""The contract of a reporter as tests."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cai_core.testing.base import Conformance
from cai_core.testing.results import results
from cai_core.types.reporter import Reporter

HOSTILE = "</script><script>alert(1)</script> {{ 7*7 }} =cmd() \u202e\x1b[31m"


class FromDisk:
    """Rows as a run gives them: to iterate, as often as one likes, and nothing else."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(copy.deepcopy(self._rows))


class ReporterConformance(Conformance):
    """See ``Conformance``."""

    kind = "reporter"

    def write(self, folder: Path, text: str = "plain words") -> dict[str, bytes]:
        """Name -> content of what is written into a new folder."""
        out = folder / "out"
        out.mkdir(parents=True)
        reporter: Reporter = self.make(self.context(folder / "work"))
        given = results(text)
        given |= {name: FromDisk(given[name]) for name in ("chains", "pairs", "samples", "scores")}
        kept = copy.deepcopy({name: found for name, found in given.items() if not isinstance(found, FromDisk)})
        written = list(reporter.write(given, out))
        assert {name: given[name] for name in kept} == kept, "the results belong to the caller"
        files = [path for path in out.rglob("*") if path.is_file()]
        assert written, "at least one file"
        assert sorted(path.resolve() for path in written) == sorted(path.resolve() for path in files)
        return {str(path.relative_to(out)): path.read_bytes() for path in files}

    def test_it_returns_the_files_that_it_wrote(self, tmp_path: Path) -> None:
        """All of them, inside the folder, none empty."""
        assert all(self.write(tmp_path).values())

    def test_same_results_same_bytes(self, tmp_path: Path) -> None:
        """No clock, no random order."""
        assert self.write(tmp_path / "a") == self.write(tmp_path / "b")

    def test_hostile_text_stays_text(self, tmp_path: Path) -> None:
        """Models wrote what is reported: no tag of theirs is a tag of the page, no terminal code gets through."""
        for name, content in self.write(tmp_path, HOSTILE).items():
            text = content.decode("utf-8", "replace")
            if name.endswith((".html", ".htm", ".svg", ".xml")):
                assert "<script>alert(1)" not in text
            if not name.endswith(".json"):
                assert "\x1b" not in text, name
            assert " 49 " not in text, "a template was rendered"
