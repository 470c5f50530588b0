"""What a log says of a run under way."""

from __future__ import annotations

import pytest

from cai_core.cli import progress
from cai_core.cli.progress import RunDisplay


def test_rate_and_time_left_are_those_of_the_part_under_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    display = RunDisplay()
    display.stage_started("revise", 2, 3)
    for done in range(500, 701, 50):  # 500 units were there already; 50 come in 10 s
        display.progress("revise", done, 1000, "")
        now += 10
    now += 1000
    for done in range(0, 41, 10):
        display.progress("revise", done, 100, "choosing\x1b[2J examples")
        now += 10
    display.progress("revise", 41, 100, "choosing\x1b[2J examples")
    lines = capsys.readouterr().err.splitlines()
    assert "[2/3] revise: 700/1000, 5/s, 60 s left" in lines
    assert any("revise: 40/100 choosing" in line and "1/s, 60 s left" in line for line in lines)
    assert "\x1b" not in "".join(lines)
