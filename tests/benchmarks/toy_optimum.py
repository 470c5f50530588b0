"""What share of the best possible E[r] - beta KL each algorithm reaches where that is known: one prompt; ten answers of
one token, five seeds, and answers of up to two tokens, three seeds. Usage: ``python tests/benchmarks/toy_optimum.py``;
about ten minutes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))

from known_optimum import PROMPT, Scores, best, outcome, table
from test_known_optimum import train_two
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


TWO: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("ppo", {}),
    "rloo": ("rloo", {}),
    "grpo, scale_rewards: none, loss: dr_grpo": ("grpo", {"scale_rewards": "none", "loss": "dr_grpo"}),
    "online_dpo": ("online_dpo", {}),
}


def main() -> None:
    """One line per algorithm."""
    one_token()
    print()
    two_tokens()


def two_tokens() -> None:
    """And what share the policy would have in which each token pays for its own KL alone."""
    print("| two tokens | share of the best, mean of three seeds | lowest | before | without foresight |")
    print("| --- | --- | --- | --- | --- |")
    for name, (kind, changed) in TWO.items():
        rows = []
        for seed in range(3):
            with tempfile.TemporaryDirectory() as folder:
                ref, found, rewards = train_two(kind, Path(folder), seed, **changed)
            policies = (found, ref, best(ref, rewards, 0.25, foresight=False))
            most = best(ref, rewards, 0.25).objective(ref, rewards, 0.25)
            rows.append([policy.objective(ref, rewards, 0.25) / most for policy in policies])
        shares, before, short = zip(*rows, strict=True)
        row = (name, *(f"{value:.3f}" for value in (mean(shares), min(shares), mean(before), mean(short))))
        print(f"| {' | '.join(row)} |", flush=True)


def one_token() -> None:
    """Answers of one token."""
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
