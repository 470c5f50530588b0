"""A revise stage whose model is on the fault server, as real processes: written, started, killed, read back."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from cai_core.pipeline.tables import CHAINS, EXAMPLES
from cai_core.store.tables import read_table

CONCURRENCY = 8
# Calls whose answer is not recorded: those at the server, and the eighth that takes a place there as soon as an answer
# is back, while that is being recorded.
UNDER_WAY = CONCURRENCY + CONCURRENCY // 8
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


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """``cai run`` of the recipe, with more arguments if wanted."""
    return subprocess.Popen(
        [sys.executable, "-m", "cai_core.cli.main", "run", "r.yaml", *arguments],
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


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """``start``, and wait: what it said. It must end with ``code``."""
    process = start(folder, *arguments)
    output = process.communicate()[0].decode()
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def recorded(folder: Path) -> str:
    """All committed payloads; the server's answers name the calls they answer."""
    path = folder / ".cai/store/ledger/revise.sqlite"
    if not path.exists():
        return ""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return " ".join(row[0] for row in db.execute("SELECT payload FROM units"))


def newest(folder: Path, kind: str) -> Path:
    """The artifact of a kind that was made last; those set aside do not count."""
    found = [path for path in (folder / ".cai/store/artifacts").glob(f"{kind}-*") if "." not in path.name]
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def result(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    artifact = newest(folder, "revise")
    chains, examples = (
        list(read_table(artifact / f"{name}.parquet", columns))
        for name, columns in (("chains", CHAINS), ("examples", EXAMPLES))
    )
    return chains, examples
