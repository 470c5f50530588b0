"""RL algorithms: ``ppo``, ``grpo`` and ``rloo`` (policy gradient), ``dpo`` and ``online_dpo``, ``best_of_n``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cai_core.hookspecs import hookimpl
from cai_core.types.component import EXECUTION, Component
from cai_core.types.context import StageContext
from cai_core.types.rl import RLAlgorithm
from cai_plugins._torch.options import TrainingOptions


class ValidationOptions(BaseModel):
    """Looks at the policy on the way: it answers prompts that it does not learn from, the reward and the recipe's
    held-out reward model score the answers, and the policy that the latter liked best is the result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Our choices. With the defaults of ``ppo``, looks cost about a tenth of what training samples cost; the standard
    # error of a score with deviation 1 is 0.18.
    every: int = Field(10, ge=1, description="steps between looks; there is one before the first and after the last")
    prompts: int = Field(
        32, ge=1, description="prompts set aside for it, by hash, at most a fifth of those that there are"
    )
    samples: int = Field(1, ge=1, description="answers per prompt and look")
    patience: int | None = Field(
        3, ge=1, description="looks without a higher held-out reward after which training stops; null is never"
    )


class RLOptions(TrainingOptions):
    """What algorithms share that train by steps."""

    validation: ValidationOptions | None = Field(
        None, description="looks on the way; null: the defaults where the recipe has a heldout_reward, else none"
    )
    snapshots: tuple[int, ...] = Field(
        (),
        description="steps whose policy is kept beside the result, to be evaluated as rl@STEP; each takes the room of "
        "a model",
    )

    @field_validator("snapshots")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(step < 1 for step in value) or list(value) != sorted(set(value)):
            raise ValueError("give steps from 1 on, in rising order, each once")
        return value


class PPOOptions(RLOptions):
    """Proximal policy optimization with a value function and the KL penalty inside of the reward.

    A step is a batch of samples and ``epochs`` x ``minibatches`` optimizer steps on it.
    """

    steps: int = Field(100, ge=1, description="batches of samples")
    # Our choice; the paper does not say.
    prompts_per_step: int = Field(8, ge=1, description="prompts per batch of samples")
    # Bai et al. 2022a: one. Ours is four, since reading a prompt once for several samples is cheaper.
    samples_per_prompt: int = Field(4, ge=1, description="samples of each prompt (Bai et al. 2022a: 1)")
    epochs: int = Field(1, ge=1, description="passes over a batch of samples (Bai et al. 2022a: 1, 2 or 4)")
    # Our choice. With one pass and one minibatch no ratio differs from 1, and nothing is ever clipped.
    minibatches: int = Field(4, ge=1, description="optimizer steps per pass; must divide the samples of a batch")
    # Bai et al. 2022a: at most 128 tokens.
    max_new_tokens: int = Field(128, ge=1, description="tokens per sample at most")
    temperature: float = Field(1.0, gt=0, description="of sampling and of all probabilities (the paper: 1 throughout)")
    # Our choice for adapters; Bai et al. 2022a: 0.01 of the rate of pretraining, for all weights.
    learning_rate: float = Field(1e-4, ge=0, description="AdamW's learning rate")
    clip: float = Field(0.2, gt=0, lt=1, description="ratios are clipped at 1 +- this (Bai et al. 2022a: 0.2)")
    # Bai et al. 2022a: gamma 1. There is no option for an entropy bonus: they have none.
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token (Bai et al. 2022a: 1)")
    # Schulman et al. 2017, table 3, and the code of Ziegler et al. 2019.
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda: 1 is the plain return, 0 one step ahead")
    beta: float = Field(
        0.001, ge=0, description="weight of the KL to the policy as given, in the reward (Bai et al. 2022a: 0.001)"
    )
    kl_control: Literal["fixed", "adaptive"] = Field(
        "fixed", description="beta stays (Bai et al. 2022a), or follows kl_target (Ziegler et al. 2019, 2.2)"
    )
    # Our choice of size for answers of a hundred tokens; the gain of 0.1 is that of Ziegler et al. 2019.
    kl_target: float = Field(6.0, gt=0, description="adaptive control: nats per sequence to stay near")
    kl_gain: float = Field(0.1, gt=0, le=1, description="adaptive control: beta changes by a fifth of this at most")
    critic: Literal["head", "separate"] = Field(
        "head", description="the value function: a linear head on the policy, or a model of its own"
    )
    critic_model: Path | None = Field(
        None, description="folder that a separate critic starts from, e.g. of a preference model; null is the policy"
    )
    critic_learning_rate: float | None = Field(
        None, ge=0, description="of the value head or the separate critic; null is learning_rate"
    )
    # The code of Ziegler et al. 2019.
    value_coef: float = Field(0.1, ge=0, description="weight of the value loss beside the policy's")
    value_clip: float | None = Field(
        0.2, gt=0, description="values move no further than this per batch of samples; null lets them (no unit)"
    )
    whiten_advantages: bool = Field(True, description="advantages with mean 0 and variance 1 over a batch's tokens")
    whiten_rewards: bool = Field(False, description="rewards, KL included, with variance 1 over a batch's tokens")
    # Our choice: no penalty. At 128 tokens a good answer may well be longer.
    missing_end_penalty: float = Field(0.0, ge=0, description="taken off the reward of an answer without end-of-text")
    # Our choice, after Bai et al. 2022a, who stay below 100.
    max_kl: float | None = Field(100.0, gt=0, description="nats per sequence at which training stops; null is never")
    # Our choice.
    max_empty: float = Field(0.9, gt=0, le=1, description="share of empty answers in a batch at which training stops")
    rollout_rows: int | None = Field(
        None,
        ge=1,
        description="answers that are sampled at a time at most; unset, 64 on a CPU and 512 on a GPU",
        json_schema_extra=EXECUTION,
    )
    token_budget: int | None = Field(
        None,
        ge=1,
        description="tokens in memory while sampling, those to come included; unset, 16,384 on a CPU, and on a GPU as "
        "many as an eighth of the memory holds keys and values of",
        json_schema_extra=EXECUTION,
    )
    # Not ``EXECUTION``: after trouble, the result is the last good checkpoint's policy.
    save_steps: int = Field(10, ge=1, description="batches of samples between checkpoints; trouble leads back to one")


class GroupOptions(RLOptions):
    """What algorithms share that compare the samples of one prompt with each other."""

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
    temperature: float = Field(1.0, gt=0, description="of sampling (the paper: 1 throughout)")
    clip: float = Field(0.2, gt=0, description="probability ratios are clipped at 1 +- this (Bai et al. 2022a: 0.2)")
    # Not ``EXECUTION``: it draws other samples.
    vllm: bool = Field(
        False, description="sample with vLLM on the GPU that trains (TRL's colocate mode; pip install 'trl[vllm]')"
    )
    # TRL's default.
    vllm_memory: float = Field(
        0.3, gt=0, lt=1, description="share of the GPU's memory that vLLM takes", json_schema_extra=EXECUTION
    )
    # Our choices, those of ``ppo``. With beta 0 max_kl costs a pass of policy and reference over each batch of samples.
    max_kl: float | None = Field(100.0, gt=0, description="nats per sequence at which training stops; null is never")
    max_empty: float = Field(0.9, gt=0, le=1, description="share of empty answers in a batch at which training stops")
    # Not ``EXECUTION``, as of ``ppo``.
    save_steps: int = Field(
        10,
        ge=1,
        description="optimizer steps between checkpoints, rounded up to whole batches of samples; trouble leads back "
        "to one",
    )


class GRPOOptions(GroupOptions):
    """Group-relative policy optimization: a sample is as good as it beats the others of its prompt."""

    # GRPO's source (Shao et al. 2024) has 0.04 in the loss. The paper's 0.001 stands on a reward per sequence instead.
    beta: float = Field(0.04, ge=0, description="weight of the KL divergence to the policy as given; 0 is none")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="what advantages are divided by: standard deviation of the group, of the batch, or nothing"
    )
    # TRL's default: each token counts the same. Shao et al. average per sequence, which favours long bad answers.
    loss: Literal["dapo", "grpo", "dr_grpo"] = Field(
        "dapo", description="mean over tokens (dapo), over sequences' means (grpo), or over max_new_tokens (dr_grpo)"
    )


class RLOOOptions(GroupOptions):
    """REINFORCE leave-one-out: a sample is as good as it beats the mean of the others of its prompt."""

    # The reward is per answer, less beta KL, as in the paper. Ahmadian et al. 2024 and TRL take more: 0.03 to 0.1.
    beta: float = Field(
        0.001, ge=0, description="what a nat of KL to the policy as given costs of the reward (Bai et al. 2022a: 0.001)"
    )
    normalize_advantages: bool = Field(
        False, description="give the advantages of a batch mean 0 and standard deviation 1 (the source: no)"
    )


class DPOOptions(RLOptions):
    """Direct preference optimization on the run's soft labels: no reward model, no sampling.

    Needs the stage `label`; a stage `reward` is not used.
    """

    epochs: int = Field(1, ge=1, description="passes over the pairs")
    # Our choice for adapters; Rafailov et al. 2023 train all weights at 1e-6.
    learning_rate: float = Field(5e-5, ge=0, description="AdamW's learning rate")
    beta: float = Field(
        0.1, gt=0, description="how much a log-ratio to the policy as given counts (Rafailov et al. 2023: 0.1)"
    )
    # Our choice: tens of pairs give several steps; Rafailov et al. 2023 have 64.
    batch_size: int = Field(8, ge=1, description="pairs per optimizer step")
    max_length: int = Field(
        1024,
        ge=16,
        description="tokens per answer with its prompt; longer pairs lose their earliest turns, or are left out",
    )
    # Our choice: that of ``ppo``, for the other direction (``dpo.py``). Answers of many hundred tokens need more.
    max_kl: float | None = Field(
        100.0, gt=0, description="nats per answer of KL(reference || policy) at which training stops; null is never"
    )
    # Not ``EXECUTION``, as of ``ppo``.
    save_steps: int = Field(50, ge=1, description="optimizer steps between checkpoints; trouble leads back to one")


class OnlineDPOOptions(RLOptions):
    """Direct preference optimization on pairs that the current policy draws and the reward, or the labeler, labels.

    A step is a batch of pairs and one optimizer step on it.
    """

    steps: int = Field(100, ge=1, description="batches of pairs")
    # Our choice; Guo et al. 2024 have 128.
    prompts_per_step: int = Field(8, ge=1, description="pairs per batch, one for a prompt")
    # Bai et al. 2022a: at most 128 tokens.
    max_new_tokens: int = Field(128, ge=1, description="tokens per sample at most")
    temperature: float = Field(1.0, gt=0, description="of sampling and of all probabilities (the paper: 1 throughout)")
    # Our choice for adapters; Guo et al. 2024 train all weights at 5e-7.
    learning_rate: float = Field(5e-5, ge=0, description="AdamW's learning rate")
    beta: float = Field(
        0.1, gt=0, description="how much a log-ratio to the policy as given counts (Guo et al. 2024: 0.1)"
    )
    # Our choices, those of ``ppo``.
    max_kl: float | None = Field(100.0, gt=0, description="nats per sequence at which training stops; null is never")
    max_empty: float = Field(0.9, gt=0, le=1, description="share of empty answers in a batch at which training stops")
    # Not ``EXECUTION``, as of ``ppo``.
    save_steps: int = Field(10, ge=1, description="steps between checkpoints; trouble leads back to one")


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
    # Our choice, that of ``ppo``.
    max_empty: float = Field(
        0.9, gt=0, le=1, description="share of empty answers, first of all and then of those chosen, that is an error"
    )
    chunk: int = Field(8, ge=1, description="prompts per row of the curve; their samples are made in one go")


def make_ppo(options: PPOOptions, context: StageContext) -> RLAlgorithm:
    """``ppo``; see ``ppo.py``."""
    from cai_plugins.rl.ppo import PPO

    return PPO(options, context)


def make_grpo(options: GRPOOptions, context: StageContext) -> RLAlgorithm:
    """``grpo``; see ``grpo.py``."""
    from cai_plugins.rl.grpo import grpo

    return grpo(options, context)


def make_rloo(options: RLOOOptions, context: StageContext) -> RLAlgorithm:
    """``rloo``; see ``rloo.py``."""
    from cai_plugins.rl.rloo import rloo

    return rloo(options, context)


def make_dpo(options: DPOOptions, context: StageContext) -> RLAlgorithm:
    """``dpo``; see ``dpo.py``."""
    from cai_plugins.rl.dpo import DPO

    return DPO(options, context)


def make_online_dpo(options: OnlineDPOOptions, context: StageContext) -> RLAlgorithm:
    """``online_dpo``; see ``online_dpo.py``."""
    from cai_plugins.rl.online_dpo import OnlineDPO

    return OnlineDPO(options, context)


def make_oaif(options: OnlineDPOOptions, context: StageContext) -> RLAlgorithm:
    """``oaif``; see ``online_dpo.py``."""
    from cai_plugins.rl.online_dpo import OnlineDPO

    return OnlineDPO(options, context, judged=True)


def make_best_of_n(options: BestOfNOptions, context: StageContext) -> RLAlgorithm:
    """``best_of_n``; see ``best_of_n.py``."""
    from cai_plugins.rl.best_of_n import BestOfN

    return BestOfN(options, context)


@hookimpl
def cai_register_rl_algorithms() -> Iterable[Component[RLAlgorithm]]:
    """The RL algorithms that come with cai-core."""
    summary = "proximal policy optimization, as in the paper; LoRA by default"
    yield Component("ppo", PPOOptions, make_ppo, summary, revision=3, distributed=True)
    summary = "group-relative policy optimization (TRL), LoRA by default"
    yield Component("grpo", GRPOOptions, make_grpo, summary, revision=2, distributed=True)
    summary = "REINFORCE leave-one-out (TRL), LoRA by default"
    yield Component("rloo", RLOOOptions, make_rloo, summary, revision=2, distributed=True)
    yield Component(
        "dpo",
        DPOOptions,
        make_dpo,
        "direct preference optimization on soft labels (TRL), without a reward model",
        learns_from=("label",),
        revision=2,
        distributed=True,
    )
    yield Component(
        "online_dpo",
        OnlineDPOOptions,
        make_online_dpo,
        "direct preference optimization on the policy's own pairs, which the reward labels softly",
        revision=2,
        distributed=True,
    )
    yield Component(
        "oaif",
        OnlineDPOOptions,
        make_oaif,
        "online AI feedback: online_dpo on labels of the run's labeler, without a reward model",
        needs=("labeler", "principle_sampler"),
        learns_from=("prompts",),
        revision=2,
        distributed=True,
    )
    yield Component(
        "best_of_n",
        BestOfNOptions,
        make_best_of_n,
        "sample n answers, keep the reward's favourite, fine-tune on them",
        needs=("trainer",),
        distributed=True,
    )
