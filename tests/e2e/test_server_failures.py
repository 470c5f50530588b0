"""Whole runs against a server that fails: what is recorded, what is told, and that the key is written nowhere."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from servers import FaultServer

CANARY = "sk-canary-7Qz41"
RECIPE = """\
schema: 1
name: served
seed: 5
constitution: hhh
models: {{base: "server:m"}}
backend: {{name: openai, base_url: "{url}", concurrency: 4, retries: 1, patience_s: {patience}}}
prompts: {{name: jsonl, path: prompts.jsonl, heldout_share: 0.0}}
revise: {{rounds: 1, critique_template: paper, filters: {{boilerplate: false}}}}
report: [json]
"""


def write(folder: Path, url: str, patience: float = 2.0) -> None:
    (folder / "r.yaml").write_text(RECIPE.format(url=url, patience=patience))
    texts = [f"What do you think of the {n * 7919 % 9973}. thing that I did?" for n in range(6)]
    rows = [{"id": f"p{n}", "prompt": text} for n, text in enumerate(texts)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))


def run(folder: Path, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", *options, "run", "r.yaml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "OPENAI_API_KEY": CANARY},
    )
    return done.returncode, done.stdout


def rows(folder: Path) -> list[str | None]:
    """The error kind of each recorded unit; None where there is none."""
    path = folder / ".cai/store/ledger/revise.sqlite"
    if not path.exists():
        return []
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return [row[0] for row in db.execute("SELECT error_kind FROM units")]


def test_one_payload_that_always_fails_is_a_row_and_the_run_goes_on(tmp_path: Path) -> None:
    with FaultServer(lambda number, body: "500" if "the 7919. thing" in str(body) else "") as server:
        write(tmp_path, server.url)
        code, output = run(tmp_path)
    assert code == 0, output
    (report,) = (tmp_path / "runs").glob("served-*/report.json")
    stages = {stage["name"]: stage for stage in json.loads(report.read_text())["stages"]}
    assert stages["revise"]["failed"] == {"infra": 1}
    assert sorted(rows(tmp_path), key=str) == [None] * 15 + ["infra"]


def test_a_server_that_fails_for_all_stops_the_run_which_goes_on_later(tmp_path: Path) -> None:
    with FaultServer(lambda number, body: "500" if number >= 5 else "") as server:
        write(tmp_path, server.url)
        code, output = run(tmp_path)
        assert code == 1, output
        assert "has answered no call for 2 s: status 500" in output
        assert "give the same command again" in output
        before = len(rows(tmp_path))
        assert rows(tmp_path) == [None] * before
        server.fault = lambda number, body: ""
        server.calls.clear()
        code, output = run(tmp_path)
        assert code == 0, output
        assert len(server.calls) == 18 - before
    assert rows(tmp_path) == [None] * 18


def test_the_key_is_written_nowhere_also_where_the_server_repeats_it(tmp_path: Path) -> None:
    outputs = []
    with FaultServer(lambda number, body: "keys" if "the 7919. thing" in str(body) or number > 9 else "") as server:
        write(tmp_path, server.url, patience=1.0)
        outputs += [run(tmp_path, "--debug")]
        server.fault = lambda number, body: "keys" if "the 7919. thing" in str(body) else ""
        outputs += [run(tmp_path, "--debug")]
        assert CANARY in str(server.headers)
    assert [code for code, _ in outputs] == [1, 0], outputs
    assert "Traceback" in outputs[0][1]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"[key]" in path.read_bytes() for path in files), "the server's message is kept, without the key"
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in str(outputs)
