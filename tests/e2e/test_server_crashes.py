"""A revise stage against a server, killed with -9 again and again: nothing that was recorded is asked twice."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from cai_core.pipeline.tables import CHAINS, EXAMPLES
from cai_core.store.tables import read_table
from servers import FaultServer

CONCURRENCY = 8
RECIPE = """\
schema: 1
name: served
seed: 5
constitution: hhh
models: {{base: "server:m"}}
backend: {{name: openai, base_url: "{url}", concurrency: {concurrency}}}
prompts: {{name: jsonl, path: prompts.jsonl, heldout_share: 0.0}}
revise: {{rounds: 2, critique_template: paper, filters: {{boilerplate: false}}}}
report: [json]
"""


def write(folder: Path, url: str, prompts: int) -> None:
    folder.mkdir()
    (folder / "r.yaml").write_text(RECIPE.format(url=url, concurrency=CONCURRENCY))
    texts = [f"What do you think of the {n * 7919 % 9973}. thing that I did?" for n in range(prompts)]
    rows = [{"id": f"p{n}", "prompt": text} for n, text in enumerate(texts)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cai_core.cli.main", "run", "r.yaml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "NO_COLOR": "1"},
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Run and worker, at the same instant."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=10)


def recorded(folder: Path) -> str:
    """All committed payloads; the server's answers name the calls they answer."""
    path = folder / ".cai/store/ledger/revise.sqlite"
    if not path.exists():
        return ""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return " ".join(row[0] for row in db.execute("SELECT payload FROM units"))


def result(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    (artifact,) = (folder / ".cai/store/artifacts").glob("revise-*")
    chains, examples = (
        list(read_table(artifact / f"{name}.parquet", columns))
        for name, columns in (("chains", CHAINS), ("examples", EXAMPLES))
    )
    return chains, examples


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
    assert repeated <= kills * CONCURRENCY
    assert result(folder) == result(whole)
