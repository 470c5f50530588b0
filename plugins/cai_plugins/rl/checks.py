"""What RL algorithms check before they learn: a policy that can end, rewards that are numbers and say something."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_core.errors import CAIError, UserError
from cai_core.types.reward import Exchange, RewardModel
from cai_plugins._torch.ranks import join, own

# Our choice: fewer may have the same reward by chance, where it has few values (rules, ratings).
LEAST_ANSWERS = 8


def check_ends(tokenizer: Any, policy: Path) -> None:
    """Raises ``UserError`` where the tokenizer has no end-of-text token: no answer would ever be finished."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the policy's tokenizer has no end-of-text token, so none of its answers ever ends",
            where=str(policy),
            hint="set `eos_token` in its tokenizer_config.json: of a chat model, the token that ends a turn",
        )


def end_tokens(model: Any, tokenizer: Any, policy: Path) -> set[int]:
    """The tokens that properly end an answer. Raises ``UserError`` where the policy has none."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    if not ends:
        raise UserError(
            "the policy has no end-of-text token, so that no answer would ever end",
            where=str(policy),
            hint="set eos_token in its tokenizer_config.json or eos_token_id in its generation_config.json, or use an "
            "instruct model",
        )
    return ends


def finite_rewards(reward: RewardModel, exchanges: Sequence[Exchange], where: str = "reward") -> list[float]:
    """One finite reward per exchange. Raises ``CAIError`` otherwise, also where the reward model fails."""
    try:
        rewards = list(reward.score(exchanges)) if exchanges else []
    except CAIError:
        raise
    except Exception as error:  # a reward model may be anybody's
        raise CAIError(
            f"the reward model failed on {len(exchanges)} answers: {type(error).__name__}: {error}",
            where=where,
            hint="nothing of this batch was learnt; the same command goes on from the last checkpoint",
        ) from error
    if len(rewards) != len(exchanges):
        raise CAIError(
            f"the reward model gave {len(rewards)} scores for {len(exchanges)} answers",
            where=where,
            hint="correct it, or choose another: it must give one per answer, in their order",
        )
    for exchange, value in zip(exchanges, rewards, strict=True):
        if not math.isfinite(value):
            raise CAIError(
                f"the reward of {exchange.id!r} is {value}; it must be finite",
                where=where,
                hint="nothing was learnt from it; train the reward model again at a lower learning_rate",
            )
    return rewards


def shared_rewards(reward: RewardModel, exchanges: Sequence[Exchange], where: str = "reward") -> list[float]:
    """``finite_rewards`` of ``exchanges``, which every process has: each asks for a part and gets all."""
    return join(finite_rewards(reward, exchanges[own(len(exchanges))], where))


def check_signal(answers: Sequence[str], rewards: Sequence[float], where: str = "reward") -> None:
    """Raises ``UserError`` when the rewards of at least ``LEAST_ANSWERS`` different answers are all the same."""
    different = len(set(answers))
    if different >= LEAST_ANSWERS and len(set(rewards)) == 1:
        raise UserError(
            f"the reward is {rewards[0]} for all {len(answers)} first answers, {different} of them different: "
            "there is nothing to learn",
            where=where,
            hint="choose a reward that tells them apart, or more samples where it is rarely earned",
        )


def check_answers(answers: Sequence[str], max_empty: float) -> None:
    """Raises ``UserError`` where a share of ``max_empty`` of the first answers has no text."""
    empty = sum(not text.strip() for text in answers) / len(answers)
    if empty >= max_empty:
        raise UserError(
            f"{empty:.0%} of the policy's first {len(answers)} answers are empty",
            where="rl.max_empty",
            hint="the policy must answer before it can learn to answer better: fine-tune it first, or use another",
        )


def diverged(step: int, what: str, value: float, advice: str) -> CAIError:
    """Training that became infinite or NaN."""
    return CAIError(
        f"training stopped at step {step}: {what} is {value}",
        where="rl",
        hint=f"{advice}; nothing of this step was saved, and the last good checkpoint is kept",
    )
