"""RL algorithms: ``grpo`` (policy gradient) and ``best_of_n`` (sample, keep the best, fine-tune)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cai_core.hookspecs import hookimpl
from cai_core.types.component import EXECUTION, Component
from cai_core.types.context import StageContext
from cai_core.types.rl import RLAlgorithm
from cai_plugins._torch.options import TrainingOptions


class GRPOOptions(TrainingOptions):
    """Group-relative policy optimization: a sample is as good as it beats the others of its prompt."""

    steps: int = Field(100, ge=1, description="optimizer steps")
    prompts_per_step: int = Field(4, ge=1, description="prompts per batch of samples")
    samples_per_prompt: int = Field(8, ge=2, description="the group: samples of one prompt that are compared")
    updates_per_batch: int = Field(
        1, ge=1, description="optimizer steps on one batch of samples (Bai et al. 2022a: 1 to 4; more drift off-policy)"
    )
    # Bai et al. 2022a: at most 128 tokens.
    max_new_tokens: int = Field(128, ge=1, description="tokens per sample at most")
    # Our choice for adapters.
    learning_rate: float = Field(1e-4, ge=0, description="AdamW's learning rate")
    # GRPO's source (Shao et al. 2024) has 0.04 in the loss. The paper's 0.001 stands on a reward per sequence instead.
    beta: float = Field(0.04, ge=0, description="weight of the KL divergence to the policy as given; 0 is none")
    temperature: float = Field(1.0, gt=0, description="of sampling (the paper: 1 throughout)")
    clip: float = Field(0.2, gt=0, description="probability ratios are clipped at 1 +- this (Bai et al. 2022a: 0.2)")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="what advantages are divided by: standard deviation of the group, of the batch, or nothing"
    )
    # TRL's default: each token counts the same. Shao et al. average per sequence, which favours long bad answers.
    loss: Literal["dapo", "grpo", "dr_grpo"] = Field(
        "dapo", description="mean over tokens (dapo), over sequences' means (grpo), or over max_new_tokens (dr_grpo)"
    )
    save_steps: int = Field(
        50, ge=1, description="optimizer steps between checkpoints, rounded up to whole batches of samples",
        json_schema_extra=EXECUTION,
    )


class BestOfNOptions(BaseModel):
    """Rejection sampling: n answers per prompt, the reward's favourite becomes a training example.

    How it trains is set at the trainer (``options: {trainer: {sft: ...}}`` in the recipe).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(8, ge=2, description="samples per prompt")
    prompts: int | None = Field(None, ge=1, description="use the first so many prompts; null is all")
    # Bai et al. 2022a: at most 128 tokens.
    max_new_tokens: int = Field(128, ge=1, description="tokens per sample at most")
    temperature: float = Field(1.0, gt=0, description="of sampling (the paper: 1 throughout)")
    top_p: float = Field(1.0, gt=0, le=1, description="of sampling")
    chunk: int = Field(8, ge=1, description="prompts per row of the curve; their samples are made in one go")


def make_grpo(options: GRPOOptions, context: StageContext) -> RLAlgorithm:
    """``grpo``; see ``grpo.py``."""
    from cai_plugins.rl.grpo import GRPO

    return GRPO(options, context)


def make_best_of_n(options: BestOfNOptions, context: StageContext) -> RLAlgorithm:
    """``best_of_n``; see ``best_of_n.py``."""
    from cai_plugins.rl.best_of_n import BestOfN

    return BestOfN(options, context)


@hookimpl
def cai_register_rl_algorithms() -> Iterable[Component[RLAlgorithm]]:
    """The RL algorithms that come with cai-core."""
    yield Component("grpo", GRPOOptions, make_grpo, "group-relative policy optimization (TRL), LoRA by default")
    yield Component(
        "best_of_n",
        BestOfNOptions,
        make_best_of_n,
        "sample n answers, keep the reward's favourite, fine-tune on them",
        needs=("trainer",),
    )
