"""A preference model on soft labels.

Kept of the paper (sections 4.1 and 4.2) and of Bai et al. 2022a: the labels are probabilities and the loss is their
cross-entropy; AI harmlessness comparisons are mixed with helpfulness comparisons; only the last answer is judged,
with all its context; the score is read at the last token; one pass at a constant rate. Left out: preference-model
pretraining, and the end-of-context token (the chat template ends an answer). Here adapters by default; there all
weights. TRL's ``RewardTrainer`` has no soft labels and drops unknown columns, so this is transformers' ``Trainer``.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Linear, Module
from transformers import Trainer, TrainingArguments, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from cai_core.errors import CAIError, UserError
from cai_core.types.context import StageContext
from cai_core.types.records import Conversation, Message
from cai_core.types.reward import Exchange, Preference
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.callbacks import arguments, checkpoints, curve, micro_batch, quiet, run
from cai_plugins._torch.chat import IGNORED, Chat, drop_early_turns
from cai_plugins._torch.checkpoints import sync
from cai_plugins._torch.loading import check_folder, context_length, load_classifier, load_tokenizer
from cai_plugins._torch.lora import lora_config, save_merged, trained
from cai_plugins._torch.preferences import check_preferences
from cai_plugins._torch.ranks import Shared, connect, everywhere, rank, shards, sum_up, wait, world
from cai_plugins._torch.seeding import seed32
from cai_plugins.rewards.losses import preference_loss
from cai_plugins.rewards.measure import flat, measure
from cai_plugins.rewards.mixture import balanced, helpful_comparisons, split
from cai_plugins.rewards.plugin import PreferenceOptions


class PreferenceModel:
    """See ``RewardModel``. Saved as a plain ``AutoModelForSequenceClassification`` folder, float32, with tokenizer
    and ``preference.json``; ``load`` gives the scores that ``fit`` left, exactly."""

    def __init__(self, options: PreferenceOptions, context: StageContext) -> None:
        quiet()
        self.options = options
        self.context = context
        size = options.batch_size
        self.micro = micro_batch(options, size, "reward_model", f"batch_size {size}")
        self._model: Any = None
        self._chat: Chat | None = None
        self._limit = options.max_length
        self._cut: Counter[str] = Counter()  # what ``_encode`` had to leave out

    # training ----------------------------------------------------------------------------------------------------

    def fit(self, model: Path, preferences: Sequence[Preference], out: Path) -> TrainResult:
        """See ``RewardModel``. Identical pairs are left out and counted: no margin could tell them apart. ``model``
        is a causal model or a reward model, whose score head is then kept.

        A restart continues from the last whole checkpoint and ends with the same weights, bit for bit on the same
        machine and thread count.
        """
        options = self.options
        check_preferences(preferences)
        self._limit = min(options.max_length, context_length(model))
        tokenizer = load_tokenizer(model)
        self._chat = Chat(tokenizer, model)
        distinct = [p for p in preferences if p.response_a != p.response_b]
        if not distinct:
            raise UserError(
                f"no comparison to learn from: {len(preferences)} given, all of them with two identical answers",
                where="reward_model",
            )
        helpful, there = helpful_comparisons(
            options.helpful, options.helpful_pairs, len(distinct), self.context.seed, self.context.may_learn
        )
        check_preferences(helpful)
        added = [p for p in helpful if p.response_a != p.response_b]
        (given, heldout), (more, heldout_more) = split(distinct, options.heldout), split(added, options.heldout)
        if not given:  # a handful of prompts, and the hash took them all
            given, more, heldout, heldout_more = distinct, added, [], []
        heldout += heldout_more
        mixture = balanced([*given, *more], options.balance)
        self._cut = Counter()
        rows = [self._row(p) for p in mixture]
        cut = dict(self._cut)

        classifier, new = load_classifier(model, self.context.device)
        _set_pad_token(classifier, tokenizer, [row["a"][-1] for row in rows] + [row["b"][-1] for row in rows])
        seed = seed32(self.context.seed, "reward")
        if new:
            _init_head(classifier, seed)
        set_seed(seed)
        folder = checkpoints(self.context, f"preference-{_identity(model, rows)}")
        learner = _trainable(classifier, options, model)
        if options.layers == 0 and shards():
            raise UserError(
                "with layers 0 the score head alone learns, and there is nothing to shard",
                where="launch.config",
                hint="write `launch: {reward: {config: null}}`",
            )
        if options.layers == 0:
            rows = self._read_once(classifier, rows, folder / "states.safetensors")
            learner = _HeadAlone(classifier.score)
            options = options.model_copy(update={"gradient_checkpointing": False})  # there is nothing to recompute
        trainer = PreferenceTrainer(
            model=learner,
            args=TrainingArguments(
                **arguments(
                    self.context,
                    folder,
                    options,
                    rate=options.learning_rate,
                    batch=options.batch_size,
                    micro=self.micro,
                    save=options.save_steps,
                ),
                num_train_epochs=1,  # ``in_batches`` repeats the rows
                train_sampling_strategy="sequential",
                remove_unused_columns=False,
            ),
            train_dataset=in_batches(rows, options.epochs, options.batch_size, self.context.seed),
            data_collator=Collator(tokenizer.pad_token_id),
            centering=options.centering,
        )
        log = run(trainer, self.context, folder, "optimizer steps")
        whole = classifier if options.layers == 0 else trained(trainer, lambda: load_classifier(model, "cpu")[0])
        self._model = save_merged(whole, tokenizer, out)
        if rank() == 0:
            settings = {"max_length": self._limit, "form": "chat"}
            (out / "preference.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")

        steps = curve(log, {"loss": "loss", "accuracy": "accuracy", "margin": "margin"})
        tail = steps[len(steps) // 2 :]
        everything = [*preferences, *helpful]
        counts = {
            "comparisons": len(given),
            "comparisons_helpful": len(more),
            "comparisons_identical": len(everything) - len(distinct) - len(added),
            "answers_empty": sum(not text.strip() for p in everything for text in (p.response_a, p.response_b)),
            "comparisons_undecided": sum(p.p_a == 0.5 for p in mixture),
            "answers_shortened": cut.get("shortened", 0),
            "answers_cut": cut.get("cut", 0),
            "steps": trainer.state.global_step,
            "heldout_n": len(heldout),
        }
        metrics = {k: float(v) for k, v in counts.items()}
        metrics["loss_first"], metrics["loss_last"] = steps[0]["loss"], steps[-1]["loss"]
        seen = [row["accuracy"] for row in tail if "accuracy" in row]
        if seen:
            metrics["accuracy_second_half"] = sum(seen) / len(seen)
        extra: dict[str, Any] = {"sources": _sources(mixture), "heldout": None}
        if heldout and rank() == 0:
            extra["heldout"] = measure(heldout, self._margins(heldout))
            metrics |= flat(extra["heldout"])
        notes = _notes(counts, len(everything), 2 * len(rows), self._limit)
        if len(helpful) < there:
            notes.append(f"{len(helpful)} of {there} helpfulness comparisons were taken; `helpful_pairs` sets how many")
        return TrainResult(metrics=metrics, curve=steps, notes=notes, extra=extra)

    def _read_once(self, classifier: Any, rows: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
        """The rows with the final hidden state at the end of each answer in place of its tokens. Where the score head
        alone learns, the states stay as they are through all passes. They are kept in ``path`` for a restart."""
        connect(self.context.device)
        there = path.is_file()
        wait()  # none looks for it when another has written it
        if not there:
            texts = [row[side] for row in rows for side in ("a", "b")]
            found = torch.zeros(len(texts), classifier.config.get_text_config().hidden_size)
            done = 0
            classifier.eval()
            for number, (chosen, ids, mask) in enumerate(self._batches(texts, classifier)):
                done += len(chosen)
                if number % world() != rank():
                    continue
                with torch.inference_mode():
                    states = classifier.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
                    found[chosen] = states[torch.arange(len(chosen)), mask.sum(1) - 1].float().cpu()
                self.context.progress.update(done, len(texts), "answers read once")
            found = sum_up(found)  # each row is another process's zero
            if rank() == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(".tmp")
                save_file({"states": found}, temporary)
                sync(temporary)
                temporary.replace(path)
            wait()
        states = load_file(path)["states"]
        return [{**row, "a": a, "b": b} for row, a, b in zip(rows, states[::2], states[1::2], strict=True)]

    def _row(self, preference: Preference) -> dict[str, Any]:
        return {
            "a": self._encode(preference.prompt, preference.response_a),
            "b": self._encode(preference.prompt, preference.response_b),
            "p": preference.p_a,
            "weight": preference.weight,
        }

    def _margins(self, pairs: Sequence[Preference]) -> list[float]:
        exchanges = [Exchange(p.id, p.prompt, text) for p in pairs for text in (p.response_a, p.response_b)]
        update, total = self.context.progress.update, len(exchanges)
        scores = self._scored(exchanges, lambda done: update(done, total, "held-out answers scored"))
        return [a - b for a, b in zip(scores[::2], scores[1::2], strict=True)]

    # scoring -----------------------------------------------------------------------------------------------------

    def load(self, path: Path) -> None:
        """See ``RewardModel``. Takes any sequence classifier with one output and a chat template."""
        check_folder(path)
        settings = path / "preference.json"
        limit = json.loads(settings.read_text(encoding="utf-8"))["max_length"] if settings.is_file() else None
        self._limit = limit or min(self.options.max_length, context_length(path))
        self._chat = Chat(load_tokenizer(path), path)
        self._model = load_classifier(path, self.context.device)[0].to(self.context.device).eval()

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """See ``RewardModel``. Batches are of like length; raises ``CAIError`` on a score that is not finite."""
        return self._scored(exchanges, lambda done: None)

    def _scored(self, exchanges: Sequence[Exchange], report: Callable[[int], None]) -> list[float]:
        if self._model is None or self._chat is None:
            raise CAIError("the reward model was neither fitted nor loaded")
        encoded = [self._encode(exchange.prompt, exchange.response) for exchange in exchanges]
        scores, done = [math.nan] * len(encoded), 0
        for chosen, ids, mask in self._batches(encoded, self._model):
            with torch.inference_mode():
                logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
            for i, value in zip(chosen, logits.float().tolist(), strict=True):
                scores[i] = value
            done += len(chosen)
            report(done)
        for exchange, value in zip(exchanges, scores, strict=True):
            if not math.isfinite(value):
                raise CAIError(f"the reward model's score of {exchange.id!r} is {value}")
        return scores

    def _batches(self, encoded: Sequence[Sequence[int]], model: Any) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Texts of like length, at most ``token_budget`` padded tokens of them: their places, tokens and mask."""
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]), reverse=True)
        while order:
            size = max(1, self.options.token_budget // len(encoded[order[0]]))
            chosen, order = order[:size], order[size:]
            ids, mask = _pad([encoded[i] for i in chosen], model.config.pad_token_id)
            yield chosen, ids.to(model.device), mask.to(model.device)

    def _encode(self, prompt: Conversation, response: str) -> list[int]:
        """The conversation with its answer. Too long: without its earliest exchanges, at last without the
        beginning of what is left; the end, where the score is read, always stays."""
        chat = self._chat
        assert chat is not None
        messages, fits = drop_early_turns(
            (*prompt, Message("assistant", response)), self._limit, lambda turns: len(chat.ids(turns))
        )
        ids = chat.ids(messages)
        self._cut["shortened"] += fits and len(messages) <= len(prompt)
        self._cut["cut"] += not fits
        return ids if fits else ids[-self._limit :]


class PreferenceTrainer(Shared, Trainer):
    """Adds up the weighted loss over the rows of the whole batch, so that micro-batches do not change it."""

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, centering: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.centering = centering
        self.model_accepts_loss_kwargs = True  # has Trainer count the rows: the entries of ``labels``
        self._seen: list[Tensor] = []

    def blank(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Shared``."""
        return {**row, "p": float(IGNORED), "weight": 0.0}

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the batch's rows of weight times loss."""
        p, weight = inputs["labels"], inputs["weight"]
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        scores = output.logits[:, 0]
        score_a, score_b = scores.to(torch.promote_types(scores.dtype, torch.float32)).chunk(2)
        loss = preference_loss(score_a, score_b, p, weight, self.centering).sum() / num_items_in_batch * world()
        self._seen.append(torch.stack([(score_a - score_b).detach(), p]).cpu())
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the model thought of the step's rows before it learnt from them."""
        if self._seen:
            margin, p = everywhere(torch.cat(self._seen, dim=1))
            self._seen = []
            decided = p != 0.5
            logs["margin"] = (margin * torch.where(p < 0.5, -1.0, 1.0)).mean().item()
            if decided.any():
                logs["accuracy"] = _right(margin[decided], p[decided]).mean().item()
        super().log(logs, start_time)


class _HeadAlone(Module):
    """The score head, reading states that were computed before."""

    def __init__(self, score: Module) -> None:
        super().__init__()
        self.score = score

    def forward(self, input_ids: Tensor, **_: Any) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.score(input_ids))


class Collator:
    """Rows of ``in_batches`` as tensors."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """All A sides, then all B sides: tokens, or the states of ``_read_once``."""
        sides = [row["a"] for row in rows] + [row["b"] for row in rows]
        if isinstance(sides[0], Tensor):
            ids, mask = torch.stack(sides), torch.ones(len(sides), 1)
        else:
            ids, mask = _pad(sides, self.pad_id)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.tensor([row["p"] for row in rows], dtype=torch.float32),
            "weight": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
        }


def in_batches(rows: Sequence[dict[str, Any]], epochs: int, batch: int, seed: int) -> list[dict[str, Any]]:
    """The rows of all epochs in the order in which they are learnt: shuffled in each epoch by ``seed``, and by falling
    length within each ``batch``.

    The batches are random ones. Only their micro-batches are of like length, which saves padding and changes nothing
    else, since the gradients of a batch are added up. All order is in the list: a restart finds its place by counting.
    """
    order = []
    for epoch in range(epochs):
        indices = list(range(len(rows)))
        random.Random(seed32(seed, "order", epoch)).shuffle(indices)
        order += [rows[i] for i in indices]
    parts = [order[start : start + batch] for start in range(0, len(order), batch)]
    return [row for part in parts for row in sorted(part, key=lambda row: -max(len(row["a"]), len(row["b"])))]


def _trainable(classifier: Any, options: PreferenceOptions, path: Path) -> Any:
    """With adapters, or with all weights; in the last ``layers`` layers and the score head alone if so wanted."""
    depth = classifier.config.get_text_config().num_hidden_layers
    if options.layers is None:
        layers = None
    elif options.layers <= depth:
        layers = range(depth - options.layers, depth)
    else:
        raise UserError(
            f"{options.layers} layers to be trained, and the model has {depth}",
            where="reward_model.layers",
            hint=str(path),
        )
    blocks = None if layers is None else [classifier.base_model.layers[i] for i in layers]
    if options.lora and blocks != []:
        inside = None if blocks is None else {id(module) for block in blocks for module in block.modules()}
        linear = None
        if inside is not None:
            linear = [name for name, m in classifier.named_modules() if isinstance(m, Linear) and id(m) in inside]
        return get_peft_model(classifier, lora_config(options.lora, "SEQ_CLS", linear))
    if blocks is not None:
        classifier.requires_grad_(False)
        for part in (classifier.score, *blocks):
            part.requires_grad_(True)
    return classifier


def _sources(mixture: Sequence[Preference]) -> list[dict[str, Any]]:
    """Comparisons to learn from by source, and their share of the summed weights."""
    total = math.fsum(p.weight for p in mixture)
    counts = Counter(p.source for p in mixture)
    return [
        {
            "name": source,
            "n": count,
            "share_of_loss": math.fsum(p.weight for p in mixture if p.source == source) / total,
        }
        for source, count in sorted(counts.items())
    ]


def _notes(counts: dict[str, int], total: int, answers: int, limit: int) -> list[str]:
    notes = []
    if counts["comparisons_identical"]:
        notes.append(f"{counts['comparisons_identical']} of {total} comparisons left out: identical answers")
    if counts["answers_empty"]:
        notes.append(f"{counts['answers_empty']} of {2 * total} answers are empty; they were scored like others")
    if counts["comparisons_undecided"]:
        notes.append(f"{counts['comparisons_undecided']} labels are 0.5: learnt from, and no part of any accuracy")
    if counts["answers_shortened"]:
        notes.append(f"{counts['answers_shortened']} of {answers} conversations lost early turns to fit {limit} tokens")
    if counts["answers_cut"]:
        notes.append(
            f"{counts['answers_cut']} of {answers} conversations lost the beginning of their last exchange: it is "
            f"longer than {limit} tokens"
        )
    if not counts["heldout_n"]:
        notes.append("no comparison was held out: the preference model was not measured on unseen ones")
    elif counts["heldout_n"] < 30:
        notes.append(f"held out: {counts['heldout_n']} comparisons, too few to tell good from bad")
    return notes


def _init_head(model: Any, seed: int) -> None:
    """A small random score head, the same whatever was loaded before.

    Our choice: 0.01 keeps the first margins far below a nat, so that the first steps learn and do not unlearn.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = model.score.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.01)


def _set_pad_token(model: Any, tokenizer: Any, last_tokens: Sequence[int]) -> None:
    """Sequence classifiers read at the last token that is not padding, so padding must not be how a text ends."""
    ends = set(last_tokens)
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(tokenizer.all_special_ids)]
    pad = next((token for token in candidates if token is not None and token not in ends), None)
    if pad is None:
        raise UserError("the tokenizer has no special token to pad with", hint="add a pad token to it")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    model.config.pad_token_id = pad


def _pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids in sequences)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for i, row in enumerate(sequences):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def _right(margin: Tensor, p: Tensor) -> Tensor:
    """1 where the sign agrees with the label, 0.5 on a tie."""
    return torch.where(margin == 0, 0.5, ((margin > 0) == (p > 0.5)).float())


def _identity(model: Path, rows: Sequence[dict[str, Any]]) -> str:
    """So that a second training in one stage does not take up the first one's checkpoints."""
    return hashlib.sha256(repr((str(model), rows)).encode()).hexdigest()[:12]
