"""Every reward model with two RL algorithms and the evaluator that uses it, swapped by one word in a recipe; real
processes, a tiny model, and a judge on a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cai_core.testing.tiny import tiny_model
from servers import FaultServer

RECIPE = """\
schema: 1
name: rewards
seed: 3
constitution: single
models: {{base: ./model, judge: "server:m"}}
backends: {{judge: {{name: openai, base_url: "{url}"}}}}
prompts: {{name: jsonl, path: prompts.jsonl}}
pairs: {{path: pairs.jsonl}}
label: {{labeler: {{name: human, path: pairs.jsonl}}, audit: null}}
reward: rules
branches:
  best: {{rl: best_of_n}}
  grpo: {{rl: grpo}}
evaluate: {{models: [base, "rl[grpo]"], evaluators: [preference_model], sampling: {{max_new_tokens: 4}}}}
report: [json]
options:
  reward_model:
    rules: {{length_weight: 1, propositions: [{{statement: It is kind., weight: 1}}], format: text}}
    judge: {{format: text, measure: 2}}
    preference: {{helpful: none, heldout: 0}}
    ensemble:
      members:
        - {{reward_model: preference, helpful: none, heldout: 0}}
        - {{reward_model: rules, length_weight: 1, target_words: 4}}
      combine: minimum
  rl_algorithm:
    grpo: {{steps: 1, prompts_per_step: 1, samples_per_prompt: 2, max_new_tokens: 4}}
    best_of_n: {{n: 2, max_new_tokens: 4, chunk: 1}}
"""


@pytest.fixture(scope="module")
def server() -> Any:
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, server: FaultServer) -> Path:
    path = tmp_path_factory.mktemp("home")
    tiny_model(path / "model")
    (path / "r.yaml").write_text(RECIPE.format(url=server.url))
    prompts = [
        {"id": f"p{n}", "prompt": f"How do I bake {n} breads?", "split": "train" if n < 3 else "heldout"}
        for n in range(5)
    ]
    pairs = [{"prompt": f"How do I bake {n} pies?", "a": "Mix and bake.", "b": "No.", "p_a": 0.9} for n in range(4)]
    for name, rows in (("prompts", prompts), ("pairs", pairs)):
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def run(folder: Path, *arguments: str, recipe: str = "r.yaml", command: str = "run") -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", command, recipe, *arguments, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1]))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("word", "asks"),
    [
        ("judge", True),
        pytest.param("rules", True, marks=pytest.mark.slow),
        pytest.param("ensemble", False, marks=pytest.mark.slow),
        pytest.param("preference", False, marks=pytest.mark.slow),
    ],
)
def test_a_reward_model_is_one_word(folder: Path, server: FaultServer, word: str, asks: bool) -> None:
    """Fitted once, used by both algorithms and the evaluator; the judge is asked on its server and nowhere else."""
    before = len(server.bodies)
    record = run(folder, "-o", f"reward={word}")
    ran = {stage["id"]: stage["status"] for stage in record["stages"]}
    assert {"reward", "rl[best]", "rl[grpo]", "evaluate"} <= set(ran)
    assert set(ran.values()) == {"ok"}
    assert (len(server.bodies) > before) == asks
    (path,) = (p for p in (folder / "runs").glob("*/report.json") if f'"{word}"' in (p.parent / "run.json").read_text())
    metrics = json.loads(path.read_text())["metrics"]
    scores = [m["values"] for m in metrics if m["id"].startswith("preference_model.")]
    assert scores
    assert any(value["value"] is not None for values in scores for value in values.values())


@pytest.mark.parametrize("word", ["judge", pytest.param("rules", marks=pytest.mark.slow)])
def test_a_reward_that_does_not_train_needs_no_labels(folder: Path, server: FaultServer, word: str) -> None:
    """RL and evaluation by it from prompts alone; another constitution is another reward."""
    text = RECIPE.format(url=server.url)
    kept = [line for line in text.splitlines() if not line.startswith(("pairs:", "label:"))]
    direct = (
        "\n".join(kept).replace("reward: rules", f"reward: {word}").replace("name: rewards", f"name: direct-{word}")
    )
    (folder / "direct.yaml").write_text(direct)
    record = run(folder, recipe="direct.yaml")
    ran = {stage["id"]: stage["status"] for stage in record["stages"]}
    assert {"reward", "rl[grpo]", "evaluate"} <= set(ran)
    assert not {"pairs", "label", "audit"} & set(ran)
    assert set(ran.values()) == {"ok"}
    (report,) = (folder / "runs").glob(f"direct-{word}-*/report.json")
    results = json.loads(report.read_text())
    assert any(m["id"].startswith("preference_model.") and m["values"] for m in results["metrics"])

    def reward(*arguments: str) -> str:
        plan = run(folder, *arguments, recipe="direct.yaml", command="plan")
        return next(str(stage["digest"]) for stage in plan["stages"] if stage["stage"] == "reward")

    assert reward() != reward("-o", "constitution=harmless")


def test_a_reward_that_trains_needs_labels(folder: Path, server: FaultServer) -> None:
    (folder / "none.yaml").write_text("name: none\nmodels: {base: ./model}\nreward: preference\n")
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "plan", "none.yaml"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "`reward` needs the stage `label`" in done.stderr
