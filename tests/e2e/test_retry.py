"""Units that failed for a reason of the machine or server are asked for again, and nothing else is."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from served import UNDER_WAY, kill, newest, recorded, result, run, start, write
from servers import FaultServer, fingerprint

PROMPTS = 12


def unlucky(number: int, body: dict[str, Any]) -> str:
    """A fifth of the calls, whenever they are made: a status that is not worth another try. Not of the short calls that
    ask whether the server refuses everybody."""
    return "422" if int(fingerprint(body), 16) % 5 == 0 and body.get("max_tokens") != 1 else ""


def of_units(server: FaultServer) -> list[str]:
    """The calls without the short ones that ask whether the server refuses everybody: there is one only where nobody
    was answered in the meantime, and it is the same for all units."""
    short = {fingerprint(body) for body in server.bodies if body.get("max_tokens") == 1}
    return [call for call in server.calls if call not in short]


def rows(folder: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{folder / '.cai/store/ledger/revise.sqlite'}?mode=ro", uri=True) as db:
        return db.execute("SELECT key, unit, payload, error_kind, error, attempt FROM units ORDER BY id").fetchall()


def record(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "runs").glob("*/run.json")  # one folder, however often it is tried
    return dict(json.loads(path.read_text()))


def test_a_partial_run_is_completed_without_touching_what_is_good(tmp_path: Path) -> None:
    """And the completion itself is killed once."""
    with FaultServer(delay=0.05) as server:
        write(tmp_path / "whole", server.url, PROMPTS)
        run(tmp_path / "whole")

        folder = tmp_path / "partial"
        write(folder, server.url, PROMPTS)
        server.calls.clear()
        server.fault = unlucky
        assert "`--retry-failed` asks for them again" in run(folder)
        assert record(folder)["status"] == "partial"
        before, partial = rows(folder), newest(folder, "revise")
        kept = {path.name: path.read_bytes() for path in partial.iterdir()}
        good = {call for call in of_units(server) if int(call, 16) % 5}
        failed = [row for row in before if row[3]]
        assert failed
        assert {row[3] for row in failed} == {"infra"}
        server.calls.clear()

        run(folder)
        assert server.calls == [], "failures are rows: without the option they stay"

        server.fault = lambda number, body: ""
        process = start(folder, "--retry-failed")
        while len(server.calls) < len(failed) // 2 + 1 and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None
        kill(process)
        time.sleep(0.2)
        committed, first = recorded(folder), len(server.calls)
        run(folder)
        assert len(server.calls) == first, "without the option the old result stands"
        run(folder, "--retry-failed")
        assert [call for call in server.calls[first:] if call in committed] == []
        assert len(server.calls) - len(set(server.calls)) <= UNDER_WAY
        assert len(set(server.calls)) == 5 * PROMPTS - len(good)
        assert not good & set(server.calls)

        assert record(folder)["status"] == "ok"
        assert json.loads(next((folder / "runs").glob("*/report.json")).read_text())["status"] == "ok"
        assert result(folder) == result(tmp_path / "whole")
        assert rows(folder)[: len(before)] == before, "a row once recorded is never changed"
        assert {path.name: path.read_bytes() for path in partial.iterdir()} == kept

        server.calls.clear()
        assert "nothing was run again" in run(folder)
        assert "nothing was run again" in run(folder, "--retry-failed")
        assert server.calls == []


def test_what_fails_again_is_a_row_again_and_can_be_asked_for_once_more(tmp_path: Path) -> None:
    with FaultServer(fault=unlucky) as server:
        write(tmp_path / "r", server.url, PROMPTS)
        run(tmp_path / "r")
        before = rows(tmp_path / "r")
        failed = sum(row[3] == "infra" for row in before)
        bad = {call for call in of_units(server) if int(call, 16) % 5 == 0}
        server.calls.clear()
        assert f"{failed} units failed" in run(tmp_path / "r", "--retry-failed")
        asked = of_units(server)
        assert set(asked) == bad
        assert len(asked) == len(bad) == failed
        again = rows(tmp_path / "r")[len(before) :]
        assert sorted(row[:5] for row in again) == sorted(row[:5] for row in before if row[3])
        server.fault = lambda number, body: ""
        run(tmp_path / "r", "--retry-failed")
    assert record(tmp_path / "r")["status"] == "ok"
    assert max(row[5] for row in rows(tmp_path / "r")) == 2


PAIRS_AND_LABELS = """\
schema: 1
name: served
seed: 5
models: {{base: "server:m"}}
backend: {{name: openai, base_url: "{url}", concurrency: 8}}
prompts: {{name: jsonl, path: prompts.jsonl, heldout_share: 0.0}}
pairs: {{}}
label: {{labeler: {{name: verdict, samples: 2, temperature: 1.0}}, audit: null}}
report: [json]
"""


def failures(folder: Path, kind: str) -> list[bool]:
    """Of each unit whether its newest row is an infra failure."""
    with sqlite3.connect(f"file:{folder / f'.cai/store/ledger/{kind}.sqlite'}?mode=ro", uri=True) as db:
        found = dict(db.execute("SELECT key, error_kind FROM units ORDER BY attempt").fetchall())
    return [kind == "infra" for kind in found.values()]


def test_failures_of_two_stages_are_mended_at_once(tmp_path: Path) -> None:
    """The later stage is made from another artifact then; its old failures are asked for again all the same."""
    with FaultServer(fault=unlucky) as server:
        write(tmp_path / "r", server.url, 16)
        (tmp_path / "r" / "r.yaml").write_text(PAIRS_AND_LABELS.format(url=server.url))
        run(tmp_path / "r")
        assert any(failures(tmp_path / "r", "pairs"))
        assert any(failures(tmp_path / "r", "label"))
        assert not all(failures(tmp_path / "r", "label"))
        server.fault = lambda number, body: ""
        run(tmp_path / "r", "--retry-failed")
        assert not any(failures(tmp_path / "r", "pairs"))
        assert not any(failures(tmp_path / "r", "label"))
        server.calls.clear()
        assert "nothing was run again" in run(tmp_path / "r", "--retry-failed")
        assert server.calls == []


def test_what_failed_twice_for_one_recipe_is_asked_for_again_by_another(tmp_path: Path) -> None:
    """They share the ledger, and each has its own count of attempts."""
    folder = tmp_path / "r"
    with FaultServer(fault=unlucky) as server:
        write(folder, server.url, PROMPTS)
        run(folder)
        run(folder, "--retry-failed")
        assert max(row[5] for row in rows(folder)) == 1
        assert any(failures(folder, "revise"))
        other = (folder / "r.yaml").read_text().replace("{boilerplate: false}", "{boilerplate: false, no_op: false}")
        (folder / "r.yaml").write_text(other.replace("name: served", "name: other"))
        server.calls.clear()
        run(folder)
        assert server.calls == [], "its units are those of the first recipe, failures included"
        server.fault = lambda number, body: ""
        run(folder, "--retry-failed")
        assert not any(failures(folder, "revise"))


def test_labels_alone_are_asked_for_again_too(tmp_path: Path) -> None:
    pairs = [{"prompt": f"How do I bake {n} breads?", "a": "Mix and bake.", "b": "No."} for n in range(PROMPTS)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))

    def label(*more: str) -> tuple[str, list[bool]]:
        backend = f"{{name: openai, base_url: '{server.url}'}}"
        command = [sys.executable, "-m", "cai_core.cli.main", "label", "pairs.jsonl", "-o", "labels.jsonl"]
        command += ["--model", "server:m", "--backend", backend, "--labeler", "verdict", "--no-audit", *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        found = [json.loads(line)["failure"] for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
        return done.stdout, [failure is not None and failure["kind"] == "infra" for failure in found]

    with FaultServer(fault=unlucky) as server:
        said, failed = label()
        assert 0 < sum(failed) < PROMPTS
        assert f"{sum(failed)} pairs failed for a reason of the machine or server: `--retry-failed`" in said
        server.fault = lambda number, body: ""
        server.calls.clear()
        assert label()[1] == failed
        assert server.calls == []
        said, left = label("--retry-failed")
        assert sum(left) == 0
        assert "--retry-failed" not in said
        assert len(server.calls) == 2 * sum(failed), "both orders of what failed, and nothing else"
