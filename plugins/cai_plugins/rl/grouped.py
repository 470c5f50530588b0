"""What GRPO and RLOO over TRL's trainers share: each prompt gets a group of samples, whose rewards are compared.

The reward model is a plain Python reward function, so any reward model will do. Left out of TRL: vLLM on a server,
tools, several rewards. TRL does not checkpoint a batch of samples in use, so checkpoints fall between batches, and the
order of prompts is laid out beforehand: a restart then goes on exactly, but for samples of vLLM, which begins anew.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.import_utils import is_vllm_available

from cai_core.errors import UserError
from cai_core.types.backend import Sampling
from cai_core.types.context import StageContext
from cai_core.types.prompts import Prompt
from cai_core.types.records import conversation
from cai_core.types.reward import Exchange, RewardModel
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.callbacks import arguments, checkpoints, curve, micro_batch, quiet, run
from cai_plugins._torch.chat import Chat
from cai_plugins._torch.checkpoints import last_whole
from cai_plugins._torch.loading import load_causal, load_tokenizer
from cai_plugins._torch.lora import lora_config, save_merged
from cai_plugins._torch.ranks import join
from cai_plugins._torch.seeding import seed32
from cai_plugins.rl.astray import Guard
from cai_plugins.rl.checks import check_answers, check_ends, check_signal, finite_rewards
from cai_plugins.rl.live import Live
from cai_plugins.rl.looking import Looks, chosen
from cai_plugins.rl.plugin import GroupOptions
from cai_plugins.rl.prompts import fitting, layout, left_out
from cai_plugins.rl.snapshots import Snapshots, check_snapshots, last_trained, write_snapshots
from cai_plugins.rl.texts import text_rates
from cai_plugins.rl.validation import Validation, set_aside, told, wanted

NAMES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl_token": "kl_token",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "clipped",
    "frac_reward_zero_std": "groups_without_signal",
    "refusal": "refusal",
    "repetition": "repetition",
    "boilerplate": "boilerplate",
    "empty": "empty",
    "loss": "loss",
}
SAMPLED = (
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "completions/mean_length",
    "completions/clipped_ratio",
    "kl",
    "kl_answer",
    "refusal",
    "repetition",
    "boilerplate",
    "empty",
)


class Grouped:
    """See ``RLAlgorithm``. Learning rate 0 leaves the weights as they are.

    name: of the algorithm. trainer, config: TRL's classes. own: arguments of ``config`` that the other lacks.
    """

    def __init__(
        self,
        name: str,
        trainer: type[Any],
        config: type[Any],
        own: Mapping[str, Any],
        options: GroupOptions,
        context: StageContext,
    ) -> None:
        quiet()
        if options.vllm:
            check_vllm(context.device)
            own = {**own, "use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": options.vllm_memory}
        self.name, self.trainer, self.config, self.own = name, trainer, config, own
        self.options = options
        self.context = context
        self.batch = options.prompts_per_step * options.samples_per_prompt
        self.micro = micro_batch(options, self.batch, "rl", f"prompts_per_step x samples_per_prompt = {self.batch}")

    def train(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel, out: Path) -> TrainResult:
        """See ``RLAlgorithm``."""
        options = self.options
        tokenizer = load_tokenizer(policy)
        check_ends(tokenizer, policy)
        chat = Chat(tokenizer, policy)
        usable, ids = fitting(chat, policy, prompts, options.max_new_tokens)
        notes = left_out(prompts, usable)
        watched, aside = wanted(options.validation, self.context), list[tuple[Prompt, list[int]]]()
        if watched is not None:
            both = list(zip(usable, ids, strict=True))
            kept, aside = set_aside(both, watched, self.context.seed, lambda item: item[0].id)
            usable, ids = [prompt for prompt, _ in kept], [tokens for _, tokens in kept]
            notes.append(f"{len(aside)} prompts are for validation and are not learnt from")
        if len(usable) < options.prompts_per_step:
            raise UserError(
                f"prompts_per_step is {options.prompts_per_step} and there are {len(usable)} prompts",
                where="rl.prompts_per_step",
                hint="lower it, or give more prompts of split train",
            )
        every = options.updates_per_batch
        check_snapshots(options.snapshots, options.steps, every)
        batches = math.ceil(options.steps / every)
        order = layout(len(usable), batches * options.prompts_per_step, seed32(self.context.seed, "prompts"))
        rows = [{"prompt": chat.turns(usable[i].messages), "index": i} for i in order]

        folder = checkpoints(self.context, f"{self.name}-{_identity(policy, usable)}")
        begun = last_whole(folder)
        if begun is not None and options.vllm:
            notes.append(f"went on from {begun.name}: vLLM draws other samples than it would have in one go")
        made = _Reward(reward, usable, options.max_empty, first=begun is None)
        trainer = self.trainer(
            model=load_causal(policy, self.context.device, all_weights=options.lora is None),
            reward_funcs=made,
            args=self.config(
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
                num_iterations=every,
                max_completion_length=options.max_new_tokens,
                temperature=options.temperature,
                beta=options.beta,
                epsilon=options.clip,
                shuffle_dataset=False,
                **self.own,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora_config(options.lora, "CAUSAL_LM"),
        )
        unseen = not options.beta and options.max_kl is not None  # without a KL in the loss TRL knows of none
        live = None
        if unseen or watched is not None:
            live = Live(trainer.model, policy, tokenizer, self.context, options.temperature, self.micro)
        if unseen:
            made.live, made.ids = live, ids
        validation = None
        if live is not None and watched is not None:
            sampling = Sampling(options.max_new_tokens, options.temperature)
            most = {"most_kl": options.max_kl or math.inf, "most_empty": options.max_empty}
            validation = Validation(watched, self.context, live, aside, sampling, reward, **most)
            trainer.add_callback(Looks(validation, folder, every))
        guard = Guard(partial(whole, known={}), options.max_kl, options.max_empty)
        trainer.add_callback(guard)
        snapshots = Snapshots(options.snapshots, validation)
        trainer.add_callback(snapshots)
        log = run(trainer, self.context, folder, "optimizer steps", snapshots)
        good = guard.good(folder, validation)
        trained, ended = last_trained(trainer, options.snapshots, folder, guard, good)
        again = partial(load_causal, policy, "cpu", all_weights=options.lora is None)
        save_merged(chosen(trainer, validation, folder, again, good), tokenizer, out)
        notes += write_snapshots(options, trained, folder, policy, self.context.device, tokenizer, out, ended)

        steps = curve(filled(log), NAMES)
        batches = [entry for entry in log if "reward" in entry]
        rewards = [float(entry["reward"]) for entry in batches]
        idle = [entry for entry in batches if entry["frac_reward_zero_std"] == 1.0]
        if idle:
            notes.append(
                f"in {len(idle)} of {len(rewards)} batches all samples of a prompt had the same reward: "
                "nothing to learn from there"
            )
        half = max(1, len(rewards) // 2)
        said, counted = guard.outcome(options.steps, good)
        metrics = {
            "steps": float(trainer.state.global_step if good is None else good),
            "samples": float(len(rewards) * self.batch),
            "reward_first": rewards[0],
            "reward_last": rewards[-1],
            "reward_first_half": sum(rewards[:half]) / half,
            "reward_second_half": sum(rewards[-half:]) / half,
            **counted,
        }
        if "kl" in steps[-1]:
            metrics["kl_last"] = steps[-1]["kl"]
        return told(TrainResult(metrics=metrics, curve=steps, notes=[*notes, *said]), validation, options.steps)


def check_vllm(device: str) -> None:
    """Raises ``UserError`` where TRL could not sample with vLLM here."""
    if device == "cpu":
        raise UserError(
            "`vllm: true` samples on a GPU, and this stage runs on the CPU",
            where="rl.vllm",
            hint="leave it out, or run on a machine with a GPU (`device: cuda`)",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # TRL knows which versions it works with, and only warns
        try:
            there = is_vllm_available()
        except UserWarning as warning:
            message, hint = str(warning).partition(" installed")[0], "pip install 'trl[vllm]' chooses one that fits"
            raise UserError(message, where="rl.vllm", hint=hint) from None
    if not there:
        hint = "pip install 'trl[vllm]' (it pins its own torch), or leave `vllm` out"
        raise UserError("`vllm: true` needs vLLM, which is not installed", where="rl.vllm", hint=hint)


class _Reward:
    """The reward model as TRL calls it. first: its next call is the first of a training. live: where it is set, the KL
    is measured too, with ``ids``, the prompts' tokens."""

    __name__ = "reward"

    def __init__(self, reward: RewardModel, prompts: Sequence[Prompt], max_empty: float, *, first: bool) -> None:
        self.reward = reward
        self.prompts = prompts
        self.max_empty = max_empty
        self.first = first
        self.live: Live | None = None
        self.ids: Sequence[list[int]] = ()
        self.rates: dict[str, float] = {}  # of the last batch of samples, until they are told

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        index: Sequence[int],
        completion_ids: Sequence[Sequence[int]],
        **kwargs: Any,
    ) -> list[float]:
        """One finite reward per sample. Raises ``CAIError`` otherwise: TRL would count a NaN as no sample."""
        exchanges = []
        for k, (i, completion) in enumerate(zip(index, completions, strict=True)):
            (answer,) = conversation(completion)
            exchanges.append(Exchange(f"{self.prompts[i].id}/{k}", self.prompts[i].messages, answer.content))
        rewards = finite_rewards(self.reward, exchanges)
        if self.first:
            check_answers([exchange.response for exchange in exchanges], self.max_empty)
            check_signal([exchange.response for exchange in exchanges], rewards)
            self.first = False
        mine = [(self.prompts[i].id, e.response) for i, e in zip(index, exchanges, strict=True)]
        found = [(prompt, text) for prompt, text in join(mine)]
        self.rates = {**text_rates(found), "empty": sum(not text.strip() for _, text in found) / len(found)}
        if self.live is not None:
            self.live.refresh()
            kl = self.live.kl([(self.ids[i], list(answer)) for i, answer in zip(index, completion_ids, strict=True)])
            everyone = join(kl)
            self.rates["kl_answer"] = math.fsum(everyone) / len(everyone)
        return rewards


class WithRates:
    """Put before a TRL trainer: its log tells what the texts of a batch of samples are like."""

    reward_funcs: Sequence[Any]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """See TRL. The rates are told once, as TRL tells a batch's reward."""
        reward = self.reward_funcs[0]
        logs |= reward.rates
        reward.rates = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def filled(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each entry ``whole``."""
    known: dict[str, Any] = {}
    return [whole(entry, known) for entry in log]


def whole(entry: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """An entry of the log with all that is known of its batch of samples, where TRL has it at the first update on it
    alone, and ``kl`` in nats per answer: TRL's is the mean over tokens (``kl_token`` here). known: what the entries
    before have told, and then this one."""
    known |= {name: entry[name] for name in SAMPLED if name in entry}
    full = {**known, **entry}
    if full.get("kl") is not None:
        full["kl_token"], full["kl"] = full["kl"], full["kl"] * full["completions/mean_length"]
    elif "kl_answer" in full:
        full["kl"] = full["kl_answer"]
    return full


def _identity(policy: Path, prompts: Sequence[Prompt]) -> str:
    """So that a second training in one stage does not take up the first one's checkpoints."""
    content = repr((str(policy), [(p.id, [(m.role, m.content) for m in p.messages]) for p in prompts]))
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:12]
