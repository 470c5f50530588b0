"""The quickstart as users run it, on the embedded model. Slow: about ten minutes, and it fetches the model once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def cai(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    output = cai(folder, "run", "quickstart")
    assert "Before and after" in output
    assert "Report: runs/quickstart-" in output
    return folder


def results(folder: Path) -> dict[str, object]:
    (path,) = (folder / "runs").glob("quickstart-*/report.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_every_stage_fits_into_six_gigabytes(folder: Path) -> None:
    peaks = {s["name"]: s["peak_mb"] for s in results(folder)["stages"] if s["peak_mb"]}  # type: ignore[attr-defined]
    assert len(peaks) >= 10
    assert max(peaks.values()) < 6000, peaks


def test_the_report_does_not_call_it_a_success(folder: Path) -> None:
    found = results(folder)
    audit = found["audit"]
    assert isinstance(audit, dict)
    findings = found["findings"]
    assert isinstance(findings, list)
    if audit["verdict"] != "above chance":
        assert findings[0]["level"] == "warning"
        assert "judge" in findings[0]["title"]
    assert any("cannot be concluded" in finding["title"] for finding in findings)


def test_revisions_are_revisions(folder: Path) -> None:
    chains = results(folder)["chains"]
    assert isinstance(chains, list)
    rounds = [entry for chain in chains for entry in chain["rounds"]]
    whole = [entry for entry in rounds if entry["revision"]]
    assert len(whole) > 0.8 * 2 * len(chains), "most chains have both rounds"
    assert not [entry for entry in whole if entry["revision"] == entry["critique"]]
    assert len({entry["principle_id"] for entry in rounds}) > 8, "principles are drawn, not taken in order"


def test_again_it_does_nothing(folder: Path) -> None:
    assert "nothing was run again" in cai(folder, "run", "quickstart")
