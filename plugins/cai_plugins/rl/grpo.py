"""GRPO over TRL's ``GRPOTrainer``.

Kept of it: sampling, advantages, the clipped loss with KL to the reference, accumulation. The reward model is a plain
Python reward function, so any reward model will do. Left out: vLLM, tools, several rewards. The paper uses PPO with a
value model (and KL inside the reward); GRPO has none: the mean of a prompt's samples is the baseline. TRL does not
checkpoint a batch of samples in use, so checkpoints fall between batches, and the order of prompts is laid out
beforehand: a restart then goes on exactly.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from cai_core.errors import CAIError, UserError
from cai_core.types.context import StageContext
from cai_core.types.prompts import Prompt
from cai_core.types.records import conversation
from cai_core.types.reward import Exchange, RewardModel
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.callbacks import Unobserved, arguments, curve, micro_batch, quiet, run
from cai_plugins._torch.chat import Chat
from cai_plugins._torch.loading import context_length, load_causal, load_tokenizer
from cai_plugins._torch.lora import lora_config, save_merged
from cai_plugins._torch.seeding import seed32
from cai_plugins.rl.plugin import GRPOOptions

NAMES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl_token": "kl_token",
    "kl": "kl",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "clipped",
    "frac_reward_zero_std": "groups_without_signal",
    "loss": "loss",
}


class _Trainer(Unobserved, GRPOTrainer):
    pass


class GRPO:
    """See ``RLAlgorithm``. ``kl`` is TRL's per-token estimate (k3) times the mean length: nats per sequence.
    Learning rate 0 leaves the weights as they are."""

    def __init__(self, options: GRPOOptions, context: StageContext) -> None:
        quiet()
        self.options = options
        self.context = context
        self.batch = options.prompts_per_step * options.samples_per_prompt
        self.micro = micro_batch(options, self.batch, "rl", f"prompts_per_step x samples_per_prompt = {self.batch}")

    def train(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel, out: Path) -> TrainResult:
        """See ``RLAlgorithm``."""
        options = self.options
        tokenizer = load_tokenizer(policy)
        chat = Chat(tokenizer, policy)
        room = context_length(policy) - options.max_new_tokens
        usable = [p for p in prompts if len(chat.ids(p.messages, generation_prompt=True)) <= room]
        notes = []
        if len(usable) < len(prompts):
            notes.append(f"{len(prompts) - len(usable)} of {len(prompts)} prompts left out: too long for the model")
        if len(usable) < options.prompts_per_step:
            raise UserError(
                f"prompts_per_step is {options.prompts_per_step} and there are {len(usable)} prompts",
                where="rl.prompts_per_step",
                hint="lower it, or give more prompts of split train",
            )
        order = layout(len(usable), self._batches() * options.prompts_per_step, seed32(self.context.seed, "prompts"))
        rows = [{"prompt": chat.turns(usable[i].messages), "index": i} for i in order]

        folder = self.context.workdir / f"grpo-{_identity(policy, usable)}"
        judge = _Reward(reward, usable)
        every = options.updates_per_batch
        trainer = _Trainer(
            model=load_causal(policy, self.context.device, all_weights=options.lora is None),
            reward_funcs=judge,
            args=GRPOConfig(
                **arguments(
                    self.context,
                    folder,
                    options,
                    rate=options.learning_rate,
                    batch=self.batch,
                    micro=self.micro,
                    save=math.ceil(options.save_steps / every) * every,
                ),
                max_steps=options.steps,
                num_generations=options.samples_per_prompt,
                num_iterations=options.updates_per_batch,
                max_completion_length=options.max_new_tokens,
                temperature=options.temperature,
                beta=options.beta,
                epsilon=options.clip,
                scale_rewards=options.scale_rewards,
                loss_type=options.loss,
                shuffle_dataset=False,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora_config(options.lora, "CAUSAL_LM"),
        )
        log = run(trainer, self.context, folder, "optimizer steps")
        save_merged(trainer.model, tokenizer, out)

        steps = curve([_with_sequence_kl(entry) for entry in log], NAMES)
        rewards = [row["reward"] for row in steps if "reward" in row]
        idle = [row for row in steps if row.get("groups_without_signal") == 1.0]
        if idle:
            notes.append(
                f"in {len(idle)} of {len(rewards)} batches all samples of a prompt had the same reward: "
                "nothing to learn from there"
            )
        half = max(1, len(rewards) // 2)
        metrics = {
            "steps": float(trainer.state.global_step),
            "samples": float(len(rewards) * self.batch),
            "reward_first": rewards[0],
            "reward_last": rewards[-1],
            "reward_first_half": sum(rewards[:half]) / half,
            "reward_second_half": sum(rewards[-half:]) / half,
        }
        if options.beta:
            metrics["kl_last"] = steps[-1]["kl"]
        return TrainResult(metrics=metrics, curve=steps, notes=notes)

    def _batches(self) -> int:
        return math.ceil(self.options.steps / self.options.updates_per_batch)


class _Reward:
    """The reward model as TRL calls it."""

    __name__ = "reward"

    def __init__(self, reward: RewardModel, prompts: Sequence[Prompt]) -> None:
        self.reward = reward
        self.prompts = prompts

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], index: Sequence[int], **kwargs: Any
    ) -> list[float]:
        """One finite reward per sample. Raises ``CAIError`` otherwise: TRL would count a NaN as no sample."""
        exchanges = []
        for k, (i, completion) in enumerate(zip(index, completions, strict=True)):
            (answer,) = conversation(completion)
            exchanges.append(Exchange(f"{self.prompts[i].id}/{k}", self.prompts[i].messages, answer.content))
        rewards = self.reward.score(exchanges)
        if len(rewards) != len(exchanges):
            raise CAIError(f"the reward model gave {len(rewards)} scores for {len(exchanges)} answers")
        for exchange, value in zip(exchanges, rewards, strict=True):
            if not math.isfinite(value):
                raise CAIError(f"the reward of {exchange.id!r} is {value}; it must be finite")
        return rewards


def layout(prompts: int, wanted: int, seed: int) -> list[int]:
    """``wanted`` indices of prompts: pass after pass over all of them, each in its own order from ``seed``."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < wanted:
        order += rng.sample(range(prompts), prompts)
    return order[:wanted]


def _with_sequence_kl(entry: dict[str, Any]) -> dict[str, Any]:
    kl, length = entry.get("kl"), entry.get("completions/mean_length")
    if kl is None:
        return entry
    return {**entry, "kl_token": kl, "kl": None if length is None else kl * length}


def _identity(policy: Path, prompts: Sequence[Prompt]) -> str:
    """So that a second training in one stage does not take up the first one's checkpoints."""
    content = repr((str(policy), [(p.id, [(m.role, m.content) for m in p.messages]) for p in prompts]))
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:12]
