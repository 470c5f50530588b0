"""The quickstart in a working folder of its own, as real processes, run whole or under fire."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tiny import embedded_stand_in

SMALL = [
    *("-o", "prompts.red_team=4", "-o", "prompts.helpful=2", "-o", "prompts.heldout_red_team=3"),
    *("-o", "prompts.heldout_helpful=2", "-o", "prompts.heldout_borderline=2"),
    *("-o", "revise.sampling.max_new_tokens=8", "-o", "pairs.sampling.max_new_tokens=8"),
    *("-o", "evaluate.sampling.max_new_tokens=8", "-o", "label.audit={name: judge_audit, limit: 8}"),
    *("-o", "options.evaluator.hhh.limit=6"),
    *("-o", "options.rl_algorithm.grpo={steps: 2, prompts_per_step: 1, samples_per_prompt: 2, max_new_tokens: 6}"),
    *("-o", "options.rl_algorithm.rloo={steps: 2, prompts_per_step: 1, samples_per_prompt: 2, max_new_tokens: 6}"),
    *("-o", "options.rl_algorithm.dpo={batch_size: 2}"),
    *("-o", "options.rl_algorithm.best_of_n={n: 2, max_new_tokens: 6}"),
]


def home_with_pairs(folder: Path, recipe: str) -> Home:
    """A working folder with the recipe ``r.yaml``, ten labelled pairs in ``pairs.jsonl`` and a tiny model in the place
    of the embedded one."""
    embedded_stand_in(folder / "cache")
    pairs = [{"prompt": f"What is {i}?", "chosen": "A number." * (1 + i % 3), "rejected": "!"} for i in range(10)]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs), encoding="utf-8")
    (folder / "r.yaml").write_text(recipe, encoding="utf-8")
    return Home(folder, folder / "cache")


@dataclass
class Home:
    """A working folder. ``cache``: where models are looked for; null is the user's own cache."""

    folder: Path
    cache: Path | None = None
    killed_in: list[str] = field(default_factory=list)
    rows_at_kill: dict[str, dict[str, str]] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        cache = {"CAI_CACHE": str(self.cache)} if self.cache else {}
        return {**os.environ, **cache, "NO_COLOR": "1"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cai_core.cli.main", *arguments]

    def cai(self, *arguments: str, check: int = 0) -> str:
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment(), capture_output=True, text=True
        )
        assert done.returncode == check, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stderr=subprocess.PIPE,
            text=True,
            # A job that a script put into the background ignores Ctrl-C, and so would all that these tests start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def rows(self) -> dict[str, dict[str, str]]:
        """All committed ledger rows: ledger -> key -> payload."""
        found = {}
        for path in sorted((self.folder / ".cai/store/ledger").glob("*.sqlite")):
            # Not read-only: the process that made the file may have been killed before it was whole.
            with sqlite3.connect(path) as db:
                if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'units'").fetchone():
                    continue
                found[path.stem] = dict(db.execute("SELECT key, payload FROM units"))
        return found

    def record(self) -> dict[str, object]:
        (path,) = (self.folder / "runs").glob("quickstart-*/run.json")
        return dict(json.loads(path.read_text()))

    def under_fire(self, *arguments: str, latest_s: float) -> None:
        """``cai run`` until it ends, killed with -9 once in each stage, at a random moment within ``latest_s`` of its
        beginning. No committed row may be lost or changed by that."""
        rng = random.Random(7)
        seen: set[str] = set()
        for _ in range(40):
            process = self.start("run", "quickstart", *arguments)
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                match = re.match(r"\[\d+/\d+\] (\S+) \.\.\.", line)
                if match and match[1] not in seen:
                    seen.add(match[1])
                    # a worker needs some seconds to import torch; late enough to be at work, or just before
                    time.sleep(rng.uniform(0.2, latest_s))
                    if process.poll() is None:
                        process.send_signal(signal.SIGKILL)
                        self.killed_in.append(match[1])
                        self.rows_at_kill = self.rows()
                        break
            process.stderr.close()
            code = process.wait()
            if code == 0:
                return
            assert code == -signal.SIGKILL, "".join(lines)
            after = self.rows()
            for ledger, rows in self.rows_at_kill.items():
                assert rows.items() <= after.get(ledger, {}).items(), f"{ledger}: a committed row was lost or changed"
        raise AssertionError("never finished")
