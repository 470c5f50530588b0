"""What share of the best possible E[r] - beta KL each algorithm reaches where that is known: one prompt, ten answers of
one token, five seeds. Usage: ``python tests/benchmarks/toy_optimum.py``; about two minutes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))

from known_optimum import PROMPT, Scores, outcome, table
from training import Context

from cai_core.types.prompts import Prompt
from cai_plugins.rl import plugin

BETA = 0.3
COMMON: dict[str, Any] = {"max_new_tokens": 1, "learning_rate": 1e-2, "schedule": "linear", "beta": BETA, "lora": None}
GROUP = {**COMMON, "steps": 100, "prompts_per_step": 1, "samples_per_prompt": 64, "save_steps": 100}
ARMS: dict[str, tuple[Any, Any]] = {
    "ppo": (plugin.make_ppo, plugin.PPOOptions(**GROUP, max_empty=1.0, minibatches=2)),
    "rloo": (plugin.make_rloo, plugin.RLOOOptions(**GROUP)),
    "grpo, scale_rewards: none": (plugin.make_grpo, plugin.GRPOOptions(**GROUP, scale_rewards="none")),
    "grpo, scale_rewards: group": (plugin.make_grpo, plugin.GRPOOptions(**GROUP)),
    "online_dpo": (
        plugin.make_online_dpo,
        plugin.OnlineDPOOptions(**COMMON, steps=200, prompts_per_step=64, save_steps=200, max_empty=1.0),
    ),
}


def main() -> None:
    """One line per algorithm."""
    print("| | share of the best, mean of five seeds | lowest | before |")
    print("| --- | --- | --- | --- |")
    for name, (make, options) in ARMS.items():
        found, before = [], []
        for seed in range(5):
            with tempfile.TemporaryDirectory() as folder:
                given = table(Path(folder) / "given", seed)
                prompts = [Prompt(f"p{i}", PROMPT.messages) for i in range(64 if name == "online_dpo" else 1)]
                algorithm = make(options, Context(Path(folder) / "w", seed=seed))
                algorithm.train(given, prompts, Scores(), Path(folder) / "out")
                result = outcome(given, Path(folder) / "out", BETA)
                found.append(result.found / result.best)
                before.append(result.given / result.best)
        print(f"| {name} | {mean(found):.3f} | {min(found):.3f} | {mean(before):.3f} |", flush=True)


if __name__ == "__main__":
    main()
