"""Direct preference optimization (Rafailov et al. 2023) on soft labels, over TRL's ``DPOTrainer``.

Kept of it: the difference of log-ratios to the reference (the policy as given: its weights without adapters, or a
second copy), accumulation, exact resume. Changed: a label is the probability that A is better and not "chosen" over
"rejected", so the loss of a pair is -(p log s(beta D) + (1 - p) log s(-beta D)). TRL's ``sigmoid`` loss has no such
label, ignores ``label_smoothing`` and drops unknown columns; at p = 1 ours is TRL's, at p = 0 that of the swapped pair.
Left out: TRL's rendering and truncation, which cuts answers; pairs are tokenised before they get there. The paper has
no DPO: it learns from the same labels by a preference model and PPO.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from cai_core.errors import UserError
from cai_core.text.parts import opening
from cai_core.types.backend import Sampling
from cai_core.types.context import StageContext
from cai_core.types.prompts import Prompt
from cai_core.types.records import Conversation, Message
from cai_core.types.reward import Preference, RewardModel
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.callbacks import Unobserved, arguments, checkpoints, curve, micro_batch, quiet, run
from cai_plugins._torch.chat import IGNORED, Chat, drop_early_turns
from cai_plugins._torch.loading import context_length, load_causal, load_tokenizer
from cai_plugins._torch.lora import lora_config, save_merged
from cai_plugins._torch.losses import soft_bradley_terry
from cai_plugins._torch.preferences import check_preferences
from cai_plugins._torch.ranks import Shared, everywhere, world
from cai_plugins.rl.astray import Guard
from cai_plugins.rl.checks import check_ends
from cai_plugins.rl.live import Live
from cai_plugins.rl.looking import Looks, chosen
from cai_plugins.rl.plugin import DPOOptions, ValidationOptions
from cai_plugins.rl.snapshots import Snapshots, check_snapshots, last_trained, write_snapshots
from cai_plugins.rl.validation import Validation, set_aside, told, wanted

COUNTED = ("equal", "too_long", "shortened", "undecided")
ANSWER = 128
"""Tokens of an answer that is looked at, at most, as in Bai et al. 2022a."""
NAMES = ("loss", "accuracy", "margin", "logratio_preferred", "logratio_other", "kl_reverse")


class DPO:
    """See ``RLAlgorithm``; it learns from ``context.preferences()`` alone. A restart continues from the last whole
    checkpoint and ends with the same weights, bit for bit on the same machine and thread count. Learning rate 0 leaves
    the weights as they are.

    The curve, each the mean over a step's pairs before it learns from them: ``loss`` in nats; ``margin``, beta D
    towards the preferred answer; ``accuracy``, how often it points there; ``logratio_preferred`` and
    ``logratio_other``, the answers' log-ratios to the reference in nats. Pairs labelled 0.5 count in the loss and in
    ``kl_reverse`` alone. That is minus the mean log-ratio of all answers: KL(reference || policy) as far as the
    reference drew them, as it does in the stage ``pairs``. The other direction needs answers of the policy, and DPO has
    none. It explodes as that does, where the policy leaves all that it reads (both log-ratios fall without end), and
    above ``max_kl`` training ends with the last checkpoint that was in order; notes and ``metrics["stopped"]`` say so.
    """

    def __init__(self, options: DPOOptions, context: StageContext) -> None:
        quiet()
        self.options = options
        self.context = context
        size = options.batch_size
        self.micro = micro_batch(options, size, "rl", f"batch_size {size}")

    def train(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel, out: Path) -> TrainResult:
        """See ``RLAlgorithm``."""
        options = self.options
        pairs = list(self.context.preferences())
        check_preferences(pairs)
        tokenizer = load_tokenizer(policy)
        check_ends(tokenizer, policy)
        chat = Chat(tokenizer, policy)
        limit = min(options.max_length, context_length(policy))
        watched, aside = wanted(options.validation, self.context), list[tuple[Prompt, list[int]]]()
        if watched is not None:
            pairs, aside = _spared(pairs, chat, limit - ANSWER, watched, self.context.seed)
        encoded = encode(pairs, chat, limit)
        notes = encoded.notes(limit)
        if aside:
            notes.append(f"the pairs of {len(aside)} conversations are for validation and are not learnt from")
        if not encoded.rows:
            more = "raise max_length" if limit < context_length(policy) else "use a policy with a longer context"
            raise UserError(
                "; ".join(["no labelled pair to learn from", *notes]),
                where="rl.max_length" if encoded.counts["too_long"] else "rl",
                hint=f"the stages pairs and label say why; where pairs are too long, give shorter ones or {more}",
            )
        if all(row["p"] == 0.5 for row in encoded.rows):
            raise UserError(
                f"all {len(encoded.rows)} labels are 0.5: there is no preference to learn",
                where="label.labeler",
                hint="use a labeler that decides; `cai label` shows what one makes of these pairs",
            )
        check_snapshots(options.snapshots, math.ceil(len(encoded.rows) / options.batch_size) * options.epochs)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

        folder = checkpoints(self.context, f"dpo-{_identity(policy, encoded.rows)}")
        trainer = SoftDPOTrainer(
            model=load_causal(policy, self.context.device, all_weights=options.lora is None),
            args=DPOConfig(
                **arguments(
                    self.context,
                    folder,
                    options,
                    rate=options.learning_rate,
                    batch=options.batch_size,
                    micro=self.micro,
                    save=options.save_steps,
                ),
                num_train_epochs=options.epochs,
                beta=options.beta,
                max_length=None,
                remove_unused_columns=False,
            ),
            data_collator=Collator(tokenizer.pad_token_id),
            train_dataset=Dataset.from_list(encoded.rows),
            processing_class=tokenizer,
            peft_config=lora_config(options.lora, "CAUSAL_LM"),
        )
        validation = None
        if watched is not None:
            live = Live(trainer.model, policy, tokenizer, self.context, 1.0, self.micro)
            most = math.inf if options.max_kl is None else options.max_kl
            validation = Validation(watched, self.context, live, aside, Sampling(ANSWER), None, most_kl=most)
            trainer.add_callback(Looks(validation, folder))
        guard = Guard(lambda entry: {"kl": entry.get("kl_reverse")}, options.max_kl, what="the KL from the reference")
        trainer.add_callback(guard)
        snapshots = Snapshots(options.snapshots, validation)
        trainer.add_callback(snapshots)
        log = run(trainer, self.context, folder, "optimizer steps", snapshots)
        good = guard.good(folder, validation)
        trained, ended = last_trained(trainer, options.snapshots, folder, guard, good)
        again = partial(load_causal, policy, "cpu", all_weights=options.lora is None)
        save_merged(chosen(trainer, validation, folder, again, good), tokenizer, out)
        notes += write_snapshots(options, trained, folder, policy, self.context.device, tokenizer, out, ended)

        steps = curve(log, {name: name for name in NAMES})
        metrics = {
            "steps": float(trainer.state.global_step if good is None else good),
            "pairs": float(len(encoded.rows)),
            **{f"pairs_{name}": float(encoded.counts[name]) for name in COUNTED},
            "loss_first": steps[0]["loss"],
            "loss_last": steps[-1]["loss"],
        }
        tail = steps[len(steps) // 2 :]
        for name in NAMES[1:]:
            if seen := [row[name] for row in tail if name in row]:
                metrics[f"{name}_second_half"] = math.fsum(seen) / len(seen)
        said, counted = guard.outcome(trainer.state.max_steps, good)
        result = TrainResult(metrics={**metrics, **counted}, curve=steps, notes=[*notes, *said])
        return told(result, validation, trainer.state.max_steps)


class SoftDPOTrainer(Shared, Unobserved, DPOTrainer):
    """TRL's trainer with a label and a weight per pair; its "chosen" is A and its "rejected" is B, whatever the label.

    Adds up the weighted loss over the pairs of the whole batch, so that micro-batches do not change it.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # has Trainer count the pairs: the entries of ``labels``
        self._seen: list[Tensor] = []

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # these are tokens already

    def blank(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Shared``."""
        return {**row, "p": float(IGNORED), "weight": 0.0}

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the batch's pairs of weight times loss."""
        p, weight = inputs["labels"], inputs["weight"]
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")}
        ref_a, ref_b = self.compute_ref_log_probs(self.ref_model or model, tokens)
        outputs = model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            labels=tokens["input_ids"].masked_fill(tokens["completion_mask"] == 0, IGNORED),
            use_cache=False,
            fused_lm_head=True,
        )
        log_a, log_b = outputs.log_probs.sum(1).chunk(2)
        a, b = log_a - ref_a, log_b - ref_b
        items = len(p) if num_items_in_batch is None else num_items_in_batch
        loss = (weight * soft_bradley_terry(self.beta * (a - b), p)).sum() / items * world()
        self._seen.append(torch.stack([a.detach(), b.detach(), p]).cpu())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the policy thought of the step's pairs before it learnt from them."""
        if self._seen:
            a, b, p = everywhere(torch.cat(self._seen, dim=1))
            self._seen = []
            logs["kl_reverse"] = -torch.cat([a, b]).mean().item()
            prefers_a, decided = p > 0.5, p != 0.5
            if decided.any():
                better = torch.where(prefers_a, a, b)[decided]
                other = torch.where(prefers_a, b, a)[decided]
                right = torch.where(better == other, 0.5, (better > other).float())
                logs["accuracy"] = right.mean().item()
                logs["margin"] = self.beta * (better - other).mean().item()
                logs["logratio_preferred"] = better.mean().item()
                logs["logratio_other"] = other.mean().item()
        super().log(logs, start_time)


@dataclass
class Collator(DataCollatorForPreference):
    """TRL's, which would leave label and weight behind."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """See TRL; and ``labels`` (P(A is better)) and ``weight``, one per pair."""
        p = torch.tensor([row["p"] for row in examples], dtype=torch.float32)
        weight = torch.tensor([row["weight"] for row in examples], dtype=torch.float32)
        # Trainer counts the pairs of a batch by ``labels``: without its first entry, unless ``shift_labels`` is there.
        return {**super().torch_call(examples), "labels": p, "shift_labels": p, "weight": weight}


@dataclass(frozen=True)
class Encoded:
    """Pairs as rows of tokens: ``prompt_ids``, ``chosen_ids`` (A), ``rejected_ids`` (B), ``p`` and ``weight``. counts:
    of ``pairs`` given, those ``equal``, ``too_long`` (both left out), ``shortened`` and ``undecided`` (p = 0.5)."""

    rows: list[dict[str, Any]]
    counts: Counter[str]

    def notes(self, limit: int) -> list[str]:
        """For a report; ``limit``: in tokens."""
        said = {
            "equal": "pairs left out: two equal answers",
            "too_long": f"pairs left out: their last exchange alone is longer than {limit} tokens",
            "shortened": f"pairs lost early turns to fit {limit} tokens",
            "undecided": "labels are 0.5: they only hold the answers' log-ratios together",
        }
        return [f"{self.counts[k]} of {self.counts['pairs']} {text}" for k, text in said.items() if self.counts[k]]


def encode(pairs: Sequence[Preference], chat: Chat, limit: int) -> Encoded:
    """Pairs as tokens. One over ``limit`` loses its earliest exchanges, the same ones for both answers."""
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter(pairs=len(pairs))
    for pair in pairs:
        if pair.response_a == pair.response_b:
            counts["equal"] += 1
            continue
        answers = [Message("assistant", text) for text in (pair.response_a, pair.response_b)]
        longest = partial(_longest, chat, answers)
        prompt, fits = drop_early_turns(pair.prompt, limit, longest)
        if not fits:
            counts["too_long"] += 1
            continue
        counts["shortened"] += len(prompt) < len(pair.prompt)
        counts["undecided"] += pair.p_a == 0.5
        (a, labels), (b, _) = (chat.answer((*prompt, answer)) for answer in answers)
        # The prompt's own tokens; fewer where a template opens the two answers' turns in different ways.
        common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        start = min(common, labels.count(IGNORED))
        tokens = {"prompt_ids": a[:start], "chosen_ids": a[start:], "rejected_ids": b[start:]}
        rows.append({**tokens, "p": pair.p_a, "weight": pair.weight})
    return Encoded(rows, counts)


def _spared(
    pairs: Sequence[Preference], chat: Chat, room: int, options: ValidationOptions, seed: int
) -> tuple[list[Preference], list[tuple[Prompt, list[int]]]]:
    """The pairs to learn from, and conversations of others to answer, with their tokens. Those that open alike are on
    one side; ``room`` is that for a conversation, in tokens."""
    first = {opening(pair.prompt): pair for pair in reversed(pairs)}
    asked = [(Prompt(p.id, p.prompt), chat.ids(p.prompt, generation_prompt=True)) for p in first.values()]
    fitting = [item for item in asked if len(item[1]) <= room]
    _, aside = set_aside(fitting, options, seed, lambda item: opening(item[0].messages))
    taken = {opening(prompt.messages) for prompt, _ in aside}
    return [pair for pair in pairs if opening(pair.prompt) not in taken], aside


def _longest(chat: Chat, answers: Sequence[Message], prompt: Conversation) -> int:
    return max(len(chat.answer((*prompt, answer))[0]) for answer in answers)


def _identity(policy: Path, rows: Sequence[dict[str, Any]]) -> str:
    """So that a second training in one stage does not take up the first one's checkpoints."""
    return hashlib.sha256(repr((str(policy), rows)).encode()).hexdigest()[:12]
