"""RLOO and GRPO on the toy problem whose optimum is known (PPO: see ``test_ppo.py``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from known_optimum import PROMPT, Scores, distribution, outcome, table
from training import Context

from cai_plugins.rl.plugin import GRPOOptions, RLOOOptions, make_grpo, make_rloo

BETA = 0.3
SMALL: dict[str, Any] = {
    "steps": 100, "prompts_per_step": 1, "samples_per_prompt": 64, "max_new_tokens": 1, "learning_rate": 1e-2,
    "schedule": "linear", "beta": BETA, "save_steps": 100, "lora": None,
}  # fmt: skip
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]


def train(kind: str, folder: Path, seed: int, **changed: Any) -> tuple[Path, Path]:
    """The policy as given and the trained one."""
    given, context = table(folder / "given", seed), Context(folder / "w", seed=seed)
    algorithm: Any
    if kind == "rloo":
        algorithm = make_rloo(RLOOOptions(**{**SMALL, **changed}), context)
    else:
        algorithm = make_grpo(GRPOOptions(**{**SMALL, **changed}), context)
    algorithm.train(given, [PROMPT], Scores(), folder / "out")
    return given, folder / "out"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kind", "options"), [("rloo", {}), ("grpo", {"scale_rewards": "none"})], ids=["rloo", "grpo"])
def test_on_a_table_it_comes_within_two_percent_of_the_optimum(
    kind: str, options: dict[str, Any], seed: int, tmp_path: Path
) -> None:
    """E[r] - beta KL against the best that any policy can have."""
    result = outcome(*train(kind, tmp_path, seed, **options), BETA)
    assert result.given < 0.6 * result.best, "there is something to gain"
    assert 0.98 * result.best < result.found <= result.best


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_scaled_by_the_group_grpo_collapses_to_the_best_answer(seed: int, tmp_path: Path) -> None:
    """A bias of GRPO itself: the surer the policy, the smaller the group's standard deviation, and the more what is
    left of the reward weighs against beta. The fixed point of pi ~ ref exp(r / (beta s(pi))) is the best answer alone;
    E[r] - beta KL there is far below the best there is."""
    given, trained = train("grpo", tmp_path, seed)
    ref, rewards = distribution(given)
    alone = torch.nn.functional.one_hot(rewards.argmax(), len(rewards)).double()
    shares, _ = distribution(trained)
    assert float((shares * alone).sum()) > 0.9
    result = outcome(given, trained, BETA)
    assert result.found < 0.9 * result.best
    assert result.found == pytest.approx(float(rewards.max() + BETA * (ref * alone).sum().log()), abs=0.1)
