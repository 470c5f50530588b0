"""A revise stage against a server, killed with -9 again and again: nothing that was recorded is asked twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from served import UNDER_WAY, kill, recorded, result, start, write
from servers import FaultServer


@pytest.mark.parametrize(
    ("kills", "prompts"), [(3, 24), pytest.param(50, 120, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_killed_again_and_again(tmp_path: Path, kills: int, prompts: int) -> None:
    rng = random.Random(2)
    with FaultServer(delay=0.03) as server:
        whole = tmp_path / "whole"
        write(whole, server.url, prompts)
        process = start(whole)
        output = process.communicate()[0].decode()
        assert process.returncode == 0, output
        calls = 5 * prompts
        assert sorted(Counter(server.calls).values()) == [1] * calls
        server.calls.clear()

        folder = tmp_path / "killed"
        write(folder, server.url, prompts)
        done_kills = 0
        while done_kills < kills:
            before, first = recorded(folder), len(server.calls)
            process = start(folder)
            # Some calls further than last time, so that the run is caught at work and gets on.
            wanted = first + rng.randrange(1, max(2, calls // kills))
            while len(server.calls) < wanted and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.02)
            if process.poll() is not None:
                break
            kill(process)
            done_kills += 1
            time.sleep(0.1)  # calls that were under way arrive at the server's log
            again = [call for call in server.calls[first:] if call in before]
            assert again == [], "a call whose row was committed is made again"
        before, first = recorded(folder), len(server.calls)
        process = start(folder)
        output = process.communicate()[0].decode()
        assert process.returncode == 0, output
        assert [call for call in server.calls[first:] if call in before] == []
    assert done_kills == kills
    repeated = sum(count - 1 for count in Counter(server.calls).values())
    assert len(set(server.calls)) == calls
    assert repeated <= kills * UNDER_WAY
    assert result(folder) == result(whole)
