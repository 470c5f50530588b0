"""Algorithms on toy problems whose optimum is known (answers of one token with PPO: see ``test_ppo.py``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from known_optimum import PROMPT, PairScores, Scores, Tree, best, distribution, outcome, table, tree
from training import Context

from cai_core.types.prompts import Prompt
from cai_plugins.rl.plugin import (
    GRPOOptions,
    OnlineDPOOptions,
    PPOOptions,
    RLOOOptions,
    make_grpo,
    make_online_dpo,
    make_ppo,
    make_rloo,
)

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
    left of the reward weighs against beta. The fixed point of pi ~ ref exp(r / (beta s(pi))) is the best answer alone.
    How far E[r] - beta KL is there below the best there is depends on how likely that answer was."""
    given, trained = train("grpo", tmp_path, seed)
    ref, rewards = distribution(given)
    alone = torch.nn.functional.one_hot(rewards.argmax(), len(rewards)).double()
    shares, _ = distribution(trained)
    assert float((shares * alone).sum()) > 0.9
    result = outcome(given, trained, BETA)
    assert result.found < 0.98 * result.best
    assert result.found == pytest.approx(float(rewards.max() + BETA * (ref * alone).sum().log()), abs=0.1)


ENDS = {"ppo": (0, 1, 2), "online_dpo": (0, 1, 2), "rloo": (2,), "grpo": (2,)}  # TRL ends an answer at its end alone


def train_two(kind: str, folder: Path, seed: int, **changed: Any) -> tuple[Tree, Tree, torch.Tensor]:
    """The policy as given, the trained one, and the rewards."""
    given, context = table(folder / "given", seed), Context(folder / "w", seed=seed)
    common = {"max_new_tokens": 2, "learning_rate": 1e-2, "schedule": "linear", "beta": 0.25, "lora": None}
    group = {"steps": 400, "prompts_per_step": 1, "samples_per_prompt": 256, "save_steps": 1000, **common, **changed}
    made: Any = {
        "ppo": lambda: make_ppo(PPOOptions(**group, max_empty=1.0, minibatches=2), context),
        "rloo": lambda: make_rloo(RLOOOptions(**group), context),
        "grpo": lambda: make_grpo(GRPOOptions(**group), context),
        "online_dpo": lambda: make_online_dpo(
            OnlineDPOOptions(**common, steps=400, prompts_per_step=128, save_steps=1000, max_empty=1.0), context
        ),
    }[kind]()
    prompts = [Prompt(f"p{i}", PROMPT.messages) for i in range(128 if kind == "online_dpo" else 1)]
    made.train(given, prompts, PairScores(), folder / "out")
    ref, rewards = tree(given, ENDS[kind])
    return ref, tree(folder / "out", ENDS[kind])[0], rewards


FEW = {"steps": 150, "samples_per_prompt": 128}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "seed", "changed"),
    [
        ("ppo", 1, FEW),
        *(
            pytest.param(kind, seed, {}, marks=pytest.mark.slow)
            for kind in ("ppo", "rloo", "online_dpo")
            for seed in range(3)
        ),
    ],
    ids=str,
)
def test_the_price_of_what_follows_is_counted(kind: str, seed: int, changed: dict[str, Any], tmp_path: Path) -> None:
    """With answers of two tokens a first one is worth what can follow it, less what that costs in KL."""
    ref, found, rewards = train_two(kind, tmp_path, seed, **changed)
    most = best(ref, rewards, 0.25).objective(ref, rewards, 0.25)
    assert ref.objective(ref, rewards, 0.25) < 0.5 * most, "there is something to gain"
    assert 0.98 * most < found.objective(ref, rewards, 0.25) <= most + 1e-9


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_grpo_charges_a_token_with_its_own_kl_alone(seed: int, tmp_path: Path) -> None:
    """A bias of GRPO itself, whose KL stands in the loss, token by token: it ends where a first token does not pay for
    what it leads to."""
    ref, found, rewards = train_two("grpo", tmp_path, seed, scale_rewards="none", loss="dr_grpo")
    shortsighted = best(ref, rewards, 0.25, foresight=False)
    assert found.away(shortsighted) < 0.05
    assert found.away(best(ref, rewards, 0.25)) > 0.1
