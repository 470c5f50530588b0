"""Supervised fine-tuning over TRL's ``SFTTrainer``.

Kept of it: the training loop, loss, packing, accumulation and exact resume (model, optimizer, schedule, random state).
Left out: its rendering and truncation. It needs ``{% generation %}`` marks in the chat template to find assistant
turns and cuts long examples at the end, where the answer is; here examples are tokenised before they get there, with
the loss on the last assistant turn and its end-of-turn token.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from cai_core.errors import UserError
from cai_core.types.context import StageContext
from cai_core.types.trainer import Example, TrainResult
from cai_plugins._torch.callbacks import Unobserved, arguments, checkpoints, curve, micro_batch, quiet, run
from cai_plugins._torch.chat import IGNORED, Chat, drop_early_turns
from cai_plugins._torch.loading import context_length, load_causal, load_tokenizer
from cai_plugins._torch.lora import lora_config, save_merged, trained
from cai_plugins._torch.ranks import Shared
from cai_plugins._torch.seeding import derived
from cai_plugins.trainers.plugin import SFTOptions


class _Trainer(Shared, Unobserved, SFTTrainer):
    def blank(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {**row, "labels": [IGNORED] * len(row["labels"])}


class SFT:
    """See ``Trainer``. A restart continues from the last whole checkpoint and ends with the same weights, bit for
    bit on the same machine and thread count. Learning rate 0 leaves the weights as they are."""

    def __init__(self, options: SFTOptions, context: StageContext) -> None:
        quiet()
        self.options = options
        self.context = context
        self.micro = micro_batch(options, options.batch_size, "trainer", f"batch_size {options.batch_size}")

    def train(self, model: Path, examples: Sequence[Example], out: Path) -> TrainResult:
        """See ``Trainer``."""
        options = self.options
        tokenizer = load_tokenizer(model)
        limit = min(options.max_length, context_length(model))
        examples, mixed = mixture(examples, options.mixture)
        rows, notes, skipped = encode(examples, Chat(tokenizer, model), limit)
        notes = mixed + notes
        if not rows:
            raise UserError("no example left to train on: " + "; ".join(notes), where="trainer.max_length")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

        folder = checkpoints(self.context, f"sft-{_identity(model, examples)}")
        trainer = _Trainer(
            model=load_causal(model, self.context.device, all_weights=options.lora is None),
            args=SFTConfig(
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
                train_sampling_strategy="random" if options.shuffle else "sequential",
                packing=options.packing,
                max_length=limit if options.packing else None,
                shuffle_dataset=False,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora_config(options.lora, "CAUSAL_LM"),
        )
        log = run(trainer, self.context, folder, "optimizer steps")
        again = partial(load_causal, model, "cpu", all_weights=options.lora is None)
        save_merged(trained(trainer, again), tokenizer, out)

        steps = curve(log, {"loss": "loss", "mean_token_accuracy": "token_accuracy"})
        tokens = sum(len(row["input_ids"]) for row in rows) * options.epochs
        metrics = {
            "loss_first": steps[0]["loss"],
            "loss_last": steps[-1]["loss"],
            "steps": float(trainer.state.global_step),
            "examples": float(len(rows)),
            "examples_skipped": float(skipped),
            "tokens": float(tokens),
            "tokens_with_loss": float(
                sum(label != IGNORED for row in rows for label in row["labels"]) * options.epochs
            ),
        }
        return TrainResult(metrics=metrics, curve=steps, notes=notes)


def mixture(examples: Sequence[Example], weights: Mapping[str, float] | None) -> tuple[list[Example], list[str]]:
    """As many examples as there are whose sources are in the proportion of ``weights``, in their order, and a note.

    Which ones, the hash of each id decides, so that with more examples those chosen before stay. Raises ``UserError``
    for a source that no example has.
    """
    if weights is None:
        return list(examples), []
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.source, []).append(example)
    for source in weights:
        if source not in groups:
            raise UserError(
                f"no example has the source {source!r}",
                where="trainer.mixture",
                hint=f"there are {', '.join(f'{len(found)} {name}' for name, found in sorted(groups.items()))}",
            )
    scale = min(len(groups[source]) / weight for source, weight in weights.items())
    chosen: set[str] = set()
    for source, weight in weights.items():
        count = max(1, round(scale * weight))
        chosen |= {e.id for e in sorted(groups[source], key=lambda e: derived("mixture", e.id))[:count]}
    kept = [example for example in examples if example.id in chosen]
    counts = Counter(example.source for example in kept)
    parts = ", ".join(f"{counts[name]} of {len(found)} {name}" for name, found in sorted(groups.items()))
    return kept, [f"mixture: {parts}"]


def encode(examples: Sequence[Example], chat: Chat, limit: int) -> tuple[list[dict[str, Any]], list[str], int]:
    """Rows with ``input_ids`` and ``labels`` (loss on the last turn only), notes on what was left out, and how many.

    An example over ``limit`` tokens loses its earliest exchanges; one whose last exchange alone is too long, or
    whose answer is empty, is left out. Raises ``UserError`` on one that does not end on an assistant turn.
    """
    rows: list[dict[str, Any]] = []
    empty = too_long = shortened = 0
    for example in examples:
        messages = example.messages
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise UserError("an example must be a prompt and end on an assistant turn", where=f"example {example.id!r}")
        if not messages[-1].content.strip():
            empty += 1
            continue
        kept, fits = drop_early_turns(messages, limit, lambda turns: len(chat.answer(turns)[0]))
        if not fits:
            too_long += 1
            continue
        shortened += kept != messages
        ids, labels = chat.answer(kept)
        rows.append({"input_ids": ids, "labels": labels})
    notes = []
    if empty:
        notes.append(f"{empty} of {len(examples)} examples left out: their answer is empty")
    if too_long:
        notes.append(f"{too_long} of {len(examples)} examples left out: longer than {limit} tokens")
    if shortened:
        notes.append(f"{shortened} of {len(examples)} examples lost early turns to fit {limit} tokens")
    return rows, notes, empty + too_long


def _identity(model: Path, examples: Sequence[Example]) -> str:
    """So that a second training in one stage does not take up the first one's checkpoints."""
    sha = hashlib.sha256(str(model).encode())
    for example in examples:
        sha.update(repr((example.id, [(m.role, m.content) for m in example.messages])).encode("utf-8", "replace"))
    return sha.hexdigest()[:12]
