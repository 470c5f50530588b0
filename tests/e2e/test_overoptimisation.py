"""RL that a held-out reward model watches, from a file of pairs to the artifact, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cai_core.cli.main import main
from cai_core.text.pairs import read_pairs
from cai_core.text.parts import held_back
from tiny import embedded_stand_in

RECIPE = """
name: watched
models: {base: smollm2-135m-instruct}
prompts: {name: builtin, red_team: 10, helpful: 0, heldout_red_team: 2, heldout_helpful: 0, heldout_borderline: 0}
pairs: {path: pairs.jsonl}
label: {labeler: {name: human, path: pairs.jsonl}, audit: null}
reward: {name: preference, helpful: none, learning_rate: 0.01, save_steps: 100}
heldout_reward: {}
rl: {name: ppo, steps: 3, prompts_per_step: 2, samples_per_prompt: 2, minibatches: 1, max_new_tokens: 6,
     learning_rate: 0.01, validation: {every: 1, prompts: 2, samples: 4}}
branches:
  ppo: {}
  dpo: {rl: {name: dpo, learning_rate: 0.01, validation: {every: 1, prompts: 2, samples: 4}}}
evaluate: {evaluators: [length, preference_model], models: [base], sampling: {max_new_tokens: 8}, best_of: 4}
report: json
"""


def pairs() -> list[dict[str, Any]]:
    return [
        {"prompt": f"What is {i}?", "chosen": "A number, " + "more " * (i % 3), "rejected": "!" * (1 + i % 5)}
        for i in range(40)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    embedded_stand_in(folder / "cache")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in pairs()), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "run", "recipe.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "CAI_CACHE": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def trainings(folder: Path) -> dict[str, dict[str, Any]]:
    """``training.json`` by stage id."""
    (run,) = (folder / "runs").glob("*/run.json")
    found = {}
    for stage in json.loads(run.read_text())["stages"]:
        for path in (folder / ".cai/store/artifacts").glob(f"{stage['kind']}-{stage['digest'][:20]}*/training.json"):
            found[stage["id"]] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_the_labels_are_divided(folder: Path) -> None:
    found = trainings(folder)
    held = sum(held_back(pair.prompt, 0.5) for pair in read_pairs(folder / "pairs.jsonl"))
    counts = {stage: record["metrics"] for stage, record in found.items()}
    learnt = {s: counts[s]["comparisons"] + counts[s]["heldout_n"] for s in ("reward", "heldout_reward")}
    assert learnt == {"reward": 40 - held, "heldout_reward": held}
    assert counts["rl[dpo]"]["pairs"] == 40 - held - 2, "two conversations are for looks"


@pytest.mark.slow
def test_every_look_is_in_the_artifact(folder: Path) -> None:
    for stage, names in (("rl[ppo]", {"reward", "heldout_reward"}), ("rl[dpo]", {"heldout_reward"})):
        record = trainings(folder)[stage]
        looks = record["extra"]["validation"]
        assert looks["best"] in [row["step"] for row in looks["rows"]]
        assert all(names <= row.keys() for row in looks["rows"])
        assert looks["why"] in record["notes"]


@pytest.mark.slow
def test_the_report_says_which_step_and_why(folder: Path) -> None:
    (path,) = (folder / "runs").glob("*/report.json")
    results = json.loads(path.read_text())
    notes = {stage["name"]: stage["notes"] for stage in results["stages"]}
    assert any(note.startswith("the result is the policy") for note in notes["rl[ppo]"])
    assert [model["stage"] for model in results["reward_models"]] == ["reward", "heldout_reward"]


@pytest.mark.slow
def test_the_reward_picks_the_best_of_four(folder: Path) -> None:
    """One of which is the answer that the model gives alone."""
    (path,) = (folder / "runs").glob("*/report.json")
    results = json.loads(path.read_text())
    name = "best_of_4[smollm2-135m-instruct]"
    assert [model["name"] for model in results["models"]] == ["base", name]
    (metric,) = [m for m in results["metrics"] if m["id"] == "preference_model.harmful"]
    assert metric["values"][name]["value"] > metric["values"]["base"]["value"]
    assert metric["values"][name]["n"] == metric["values"]["base"]["n"] == 2
    notes = {stage["name"]: stage["notes"] for stage in results["stages"]}
    assert any("at most log 4 - 3/4 = 0.64 nats" in note for note in notes[f"answers[{name}]"])


def test_the_example_plans_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    example = Path(__file__).parents[2] / "docs/examples/overoptimisation/recipe.yaml"
    embedded_stand_in(tmp_path / "cache")
    (tmp_path / "recipe.yaml").write_text(example.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in pairs()), encoding="utf-8")
    rows = [{"prompt": f"What is {i}?", "split": "train" if i < 40 else "heldout"} for i in range(50)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    assert main(["plan", "recipe.yaml"]) == 0
    assert "heldout_reward  run" in capfd.readouterr().out


def test_too_few_labels_to_divide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    embedded_stand_in(tmp_path / "cache")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pairs()[0]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    assert main(["run", "recipe.yaml"]) == 2
    text = capfd.readouterr().err
    assert "none of 1 labelled pairs" in text
    assert "heldout_reward.share" in text
