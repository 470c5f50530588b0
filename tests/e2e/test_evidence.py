"""The experiment of docs/explanation/evidence.md: its recipe plans as it is, and runs to its end with tiny models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from homes import Home
from tiny import embedded_stand_in

EXAMPLE = Path(__file__).parents[2] / "docs/examples/evidence"
SMALL = [
    *("-o", "revise.sampling.max_new_tokens=8", "-o", "pairs.sampling.max_new_tokens=8"),
    *("-o", "evaluate.sampling.max_new_tokens=8", "-o", "label.audit.limit=8", "-o", "reward.epochs=1"),
    *("-o", "branches.ppo.rl={name: ppo, steps: 2, prompts_per_step: 2, max_new_tokens: 6, learning_rate: 0.05}"),
    *("-o", "branches.dpo.rl={name: dpo, batch_size: 4, validation: {every: 1, prompts: 1, samples: 2}}"),
    *("-o", "branches.dpo.rl.learning_rate=0.05"),
    *("-o", "branches.best_of_n.rl={name: best_of_n, n: 2, max_new_tokens: 6}"),
    # One small number format for weights of which nothing depends here.
    *("-o", "backends.generator.dtype=float32", "-o", "backends.judge.dtype=float32"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("evidence")
    embedded_stand_in(folder / "cache")
    embedded_stand_in(folder / "cache", "qwen2.5-coder-1.5b-instruct")
    shutil.copytree(EXAMPLE, folder / "evidence")
    words = [sha256(f"{i}".encode()).hexdigest() for i in range(300)]
    openings = [f"What do {word[:8]} and {word[8:16]} mean to {word[16:24]}?" for word in words]
    lines = [json.dumps({"chosen": f"\n\nHuman: {text}\n\nAssistant: Mix."}) for text in openings]
    (folder / "evidence/hh.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Home(folder / "evidence", folder / "cache")


def prompts(home: Home) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "prompts.py", "hh.jsonl"], cwd=home.folder, check=True, capture_output=True, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def write(home: Home, rows: list[dict[str, Any]]) -> None:
    (home.folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def test_it_plans_as_it_is(home: Home) -> None:
    rows = prompts(home)
    counts = [sum((row["kind"], row["split"]) == ("red_team", split) for row in rows) for split in ("train", "heldout")]
    assert counts == [180, 80], "as the page says"
    assert len(rows) == 180 + 80 + 40 + 32
    write(home, rows)
    plan = home.cai("plan", "recipe.yaml")
    assert all(f"rl[{name}]" in plan for name in ("ppo", "dpo", "best_of_n"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_to_its_end(home: Home) -> None:
    few = {("red_team", "train"): 10, ("helpful", "train"): 4, ("red_team", "heldout"): 4, ("helpful", "heldout"): 3}
    rows = prompts(home)
    write(home, [row for of, n in few.items() for row in [r for r in rows if (r["kind"], r["split"]) == of][:n]])
    home.cai("run", "recipe.yaml", *SMALL)
    (path,) = (home.folder / "runs").glob("evidence-*/report.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    policies = ["rl[ppo]", "rl[dpo]", "rl[best_of_n]"]
    assert [model["name"] for model in results["models"]] == ["sft", *policies]
    paired = {(row["metric"], row["a"], row["b"]): row for row in results["comparisons"]}
    for policy in policies[:2]:  # they have moved so far that they answer otherwise; best_of_n may well not have
        assert paired["preference_model.harmful", "sft", policy]["low"] is not None, "an interval against the start"
    assert paired["preference_model.harmful", "sft", policies[2]]["n"] == 4
    (judged,) = [m for m in results["metrics"] if m["id"] == "pairwise.win_rate.harmless"]
    assert set(judged["values"]) == set(policies)
    assert all(value["low"] <= value["value"] <= value["high"] for value in judged["values"].values())
    trained = {}
    for stage in results["stages"]:
        for file in (home.folder / ".cai/store/artifacts").glob(f"rl-{stage['digest'][:20]}*/training.json"):
            trained[stage["name"]] = json.loads(file.read_text(encoding="utf-8"))
    assert "kl_last" in trained["rl[ppo]"]["metrics"]
    assert "kl" in trained["rl[dpo]"]["extra"]["validation"]["rows"][-1]
    assert trained["rl[dpo]"]["extra"]["validation"]["best"] is None, "looks choose nothing"
    assert "kl_bound" in trained["rl[best_of_n]"]["metrics"]
