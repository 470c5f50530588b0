"""Online direct preference optimization: two answers of the current policy, a label, an update, and again.

Kept of Guo et al. 2024: each pair is sampled from the policy as it is, labelled, and learnt from once by the loss of
Rafailov et al. 2023. ``oaif`` has the run's labeler give the labels, under principles as in the paper's labelling (Bai
et al. 2022b, section 4.1), and needs no reward model. ``online_dpo`` has the reward model give them, sigmoid(r(a) -
r(b)), which is what a preference model means by its scores (Bai et al. 2022a). Changed: a label is a probability and
not a verdict, and the loss that of ``dpo``. It is least where beta times the difference of log-ratios is the label's
log-odds, so that the optimum of ``online_dpo`` is the paper's: E[r] - beta KL. Left out: several passes over a pair.

Every random number comes from the stage's seed and what it is for, as in ``ppo.py``: a checkpoint between two steps is
all that a restart needs. Several processes share a batch's answers, labels and pairs.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import set_seed

from cai_core.errors import CAIError, UserError
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.context import StageContext
from cai_core.types.labeler import Comparison
from cai_core.types.prompts import Prompt
from cai_core.types.records import ModelInput
from cai_core.types.reward import Exchange, RewardModel
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.callbacks import micro_batch, quiet
from cai_plugins._torch.chat import Chat
from cai_plugins._torch.checkpoints import last_whole
from cai_plugins._torch.loading import load_tokenizer
from cai_plugins._torch.lora import save_merged
from cai_plugins._torch.losses import soft_bradley_terry
from cai_plugins._torch.ranks import join, own, rank, sum_up, world
from cai_plugins._torch.seeding import derived, seed32
from cai_plugins.rl.astray import last_good, stopped, trouble
from cai_plugins.rl.checks import LEAST_ANSWERS, check_answers, check_signal, diverged, shared_rewards
from cai_plugins.rl.learner import Learner
from cai_plugins.rl.plugin import OnlineDPOOptions
from cai_plugins.rl.prompts import fitting, layout, left_out
from cai_plugins.rl.samples import Tokens, by_length
from cai_plugins.rl.snapshots import check_snapshots, spared, write_snapshots
from cai_plugins.rl.texts import text_rates
from cai_plugins.rl.validation import Item, Row, Validation, checkpoint, set_aside, told, wanted

HINT = "lower learning_rate"


class OnlineDPO:
    """See ``RLAlgorithm``. Learning rate 0 leaves the weights as they are. A row of the curve is a batch of pairs: what
    the policy that drew it was like, and what it learnt. Training that has gone astray (``max_kl``, ``max_empty``) ends
    early with the last checkpoint whose policy had been seen to be in order; notes and ``metrics["stopped"]`` say so.
    """

    def __init__(self, options: OnlineDPOOptions, context: StageContext, *, judged: bool = False) -> None:
        """``judged``: by the labeler, and not by the reward."""
        quiet()
        self.judged = judged
        self.options = options
        self.context = context
        self.pairs = options.prompts_per_step
        self.micro = micro_batch(options, self.pairs, "rl", f"prompts_per_step = {self.pairs}")

    def train(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel, out: Path) -> TrainResult:
        """See ``RLAlgorithm``. Raises ``UserError`` where the first batch of answers has nothing to teach."""
        options, seed = self.options, self.context.seed
        tokenizer = load_tokenizer(policy)
        usable, ids = fitting(Chat(tokenizer, policy), policy, prompts, options.max_new_tokens)
        notes = left_out(prompts, usable)
        watched, aside = wanted(options.validation, self.context), list[tuple[Prompt, list[int]]]()
        if watched is not None:
            kept, aside = set_aside(list(zip(usable, ids, strict=True)), watched, seed, lambda item: item[0].id)
            usable, ids = [prompt for prompt, _ in kept], [tokens for _, tokens in kept]
            notes.append(f"{len(aside)} prompts are for validation and are not learnt from")
        check_snapshots(options.snapshots, options.steps)
        if len(usable) < self.pairs:
            notes.append(f"{len(usable)} prompts for prompts_per_step {self.pairs}: batches repeat them")
        order = layout(len(usable), options.steps * self.pairs, seed32(seed, "prompts"))

        set_seed(seed32(seed, "train"))  # adapters begin with random numbers
        learner = Learner(
            options,
            self.context,
            policy,
            tokenizer,
            micro=2 * self.micro,
            per_pass=self.micro,
            batch=self.pairs,
            updates=options.steps,
        )
        folder = learner.folder(f"online_dpo-{_identity(policy, usable)}")

        def restored(saved: Path | None) -> _State:
            return _State() if saved is None else _State(**learner.load(saved))

        state = restored(last_whole(folder))
        validation = None
        if watched is not None:
            scorer = None if self.judged else reward
            limits = {"most_kl": options.max_kl or math.inf, "most_empty": options.max_empty}
            validation = Validation(watched, self.context, learner, aside, self._sampling(), scorer, **limits)
            validation.rows = state.looks
        for step in range(state.step + 1, options.steps + 1):
            if validation is not None and validation.exhausted:
                break
            if validation is not None and not state.looks:
                validation.look(0)
            chosen = order[(step - 1) * self.pairs : step * self.pairs]
            row = self._backward(learner, step, [(usable[i], ids[i]) for i in chosen], reward)
            if found := trouble(row, options.max_kl, options.max_empty):
                good = last_good(folder, step, found, validation)
                curve = [*state.curve, row]
                state = state if good is None else restored(good)
                state.curve, state.stopped = curve, step
                notes.append(stopped(found, step, options.steps, None if good is None else state.step))
                break
            row["learning_rate"] = learner.parts["policy"].rate
            row["grad_norm"] = learner.parts["policy"].step()
            if not math.isfinite(row["grad_norm"]):
                raise diverged(step, "the gradient's norm", row["grad_norm"], HINT)
            state.step = step
            state.curve.append(row)
            if validation is not None and validation.due(step, options.steps):
                validation.look(step)
            best = validation.best if validation is not None else None
            if step % options.save_steps == 0 or step in (options.steps, best, *options.snapshots):
                learner.save(folder / f"checkpoint-{step}", asdict(state), spared(options.snapshots, validation))
            self.context.progress.update(step, options.steps, "batches of pairs")

        best = validation.best if validation is not None else None
        if best and best != state.step:
            restored(checkpoint(folder, best))
        save_merged(learner.result(best), tokenizer, out)
        notes += write_snapshots(options, state.step, folder, policy, self.context.device, tokenizer, out)
        return told(self._result(state, notes), validation, options.steps)

    # a step ------------------------------------------------------------------------------------------------------

    def _sampling(self) -> Sampling:
        return Sampling(self.options.max_new_tokens, self.options.temperature)

    def _backward(self, learner: Learner, step: int, prompts: Sequence[Item], reward: RewardModel) -> Row:
        """Sample, label and add up gradients; what was seen."""
        options = self.options
        requests, ids = [], []
        for place, (prompt, tokens) in enumerate(prompts):
            for k in range(2):
                # The place too: a prompt comes twice where one pass over them ends and the next begins.
                seed = derived(self.context.seed, "rollout", prompt.id, step, place, k)
                given = ModelInput(messages=prompt.messages)
                requests.append(GenerateRequest(f"{prompt.id}/{step}/{place}/{k}", given, self._sampling(), seed))
                ids.append(tokens)
        answers = learner.sample(requests, ids)
        texts = [learner.text(answer) for answer in answers]
        of = [prompt for prompt, _ in prompts for _ in range(2)]
        exchanges = [Exchange(r.id, p.messages, t) for r, p, t in zip(requests, of, texts, strict=True)]
        n = len(texts)
        row: Row = {
            "step": float(step),
            "length": sum(len(answer) for answer in answers) / n,
            "missing_end": 1 - sum(learner.ended(answer) for answer in answers) / n,
            "empty": sum(not text.strip() for text in texts) / n,
            **text_rates([(prompt.id, text) for prompt, text in zip(of, texts, strict=True)]),
        }
        if step == 1:
            check_answers(texts, options.max_empty)
        p, seen = self._judge(exchanges, step) if self.judged else _score(reward, exchanges, step)
        row |= seen
        labels = torch.tensor(p)
        known = ~labels.isnan()
        row["label_gap"] = float((labels[known] - 0.5).abs().mean())
        row["equal"] = sum(a == b for a, b in zip(answers[::2], answers[1::2], strict=True)) / self.pairs
        samples = list(zip(ids, answers, strict=True))
        pairs = list(zip(samples[::2], samples[1::2], strict=True))
        sums = torch.zeros(3, dtype=torch.float64)  # over the pairs of this process
        for rows in by_length(range(len(pairs)), _longest(pairs), self.micro, rank(), world()):
            some = [pairs[i][side] for side in range(2) for i in rows]
            with torch.no_grad():
                reference = learner.logp(some, reference=True)
            ratio = learner.logp(some, learner=learner.parts["policy"].model) - reference
            a, b = ratio.chunk(2)
            there = known[rows].to(ratio.device)
            wanted = torch.where(there, labels[rows].to(ratio.device), 0.5)
            loss = torch.where(there, soft_bradley_terry(options.beta * (a - b), wanted), 0).sum() / int(known.sum())
            if not torch.isfinite(loss):
                raise diverged(step, "the loss", float(loss.detach()), HINT)
            learner.parts["policy"].backward(loss)
            agrees = (torch.sign(a - b) * torch.sign(wanted - 0.5)).detach() / 2 + 0.5
            right = torch.where(there, agrees, 0).sum() / int(known.sum())
            sums += torch.stack([loss.detach().double(), ratio.detach().double().sum() / n, right.double()]).cpu()
        # The policy has not moved since it drew these, so the mean log-ratio is an estimate of its KL.
        return {**row, **dict(zip(("loss", "kl", "accuracy"), sum_up(sums).tolist(), strict=True))}

    def _judge(self, exchanges: Sequence[Exchange], step: int) -> tuple[list[float], Row]:
        """The labeler's P(first answer is better) of each pair, NaN where it gave none, and the share of those. A pair
        of equal answers is not asked about; each process asks about a part of the others. Raises ``CAIError`` where no
        pair of the batch has a label."""
        context = self.context
        principles = [principle for principle in context.constitution.principles if principle.comparison]
        asked: list[tuple[int, Comparison]] = []
        for i, (a, b) in enumerate(zip(exchanges[::2], exchanges[1::2], strict=True)):
            if a.response == b.response:
                continue
            rng = random.Random(derived(context.seed, "principle", a.id))
            prompt = Prompt(a.id, a.prompt)
            drawn = context.component("principle_sampler").sample(
                principles, prompt=prompt, step="comparison", index=0, rng=rng
            )
            seed = derived(context.seed, "label", a.id)
            asked.append((i, Comparison(a.id, a.prompt, a.response, b.response, tuple(drawn), seed)))
        found = [0.5] * self.pairs
        failures: Counter[str] = Counter()
        for i, p, failure in join(self._labels(asked[own(len(asked))])):
            found[i] = math.nan if p is None else p
            failures.update([failure] if failure else [])
        if all(math.isnan(value) for value in found):
            raise CAIError(
                f"no pair of step {step} has a label: {failures.most_common(1)[0][0]}",
                where="label.labeler",
                hint="use a labeler that asks a model, as people's labels know no new pairs; `cai label` shows what "
                "one makes of pairs. Nothing of this step was learnt",
            )
        if step == 1 and len(found) >= LEAST_ANSWERS and set(found) == {0.5}:
            raise UserError(
                f"all {len(found)} first labels are 0.5: there is no preference to learn",
                where="label.labeler",
                hint="use a labeler that decides; `cai label` shows what one makes of pairs",
            )
        return found, {"failed": failures.total() / self.pairs}

    def _labels(self, asked: Sequence[tuple[int, Comparison]]) -> list[tuple[int, float | None, str]]:
        """What the labeler makes of each: its place, P(A is better) or None, and why there is none."""
        places = {comparison.id: i for i, comparison in asked}
        found: list[tuple[int, float | None, str]] = []
        for label in self.context.component("labeler").label([comparison for _, comparison in asked]):
            i = places.pop(label.id, None)
            if i is None:
                raise CAIError(
                    f"the labeler gave a label for {label.id!r}, which it was not asked for, or had labelled",
                    where="label.labeler",
                    hint="use another labeler; nothing of this step was learnt",
                )
            if label.failure is not None:
                found.append((i, None, f"{label.failure.kind}: {label.failure.message}"))
            elif label.p_a is None or not 0 <= label.p_a <= 1:
                raise CAIError(
                    f"the labeler gave p_a = {label.p_a!r} for {label.id!r}; it must lie in [0, 1]",
                    where="label.labeler",
                    hint="use another labeler; nothing of this step was learnt",
                )
            else:
                found.append((i, float(label.p_a), ""))
        if places:
            raise CAIError(
                f"the labeler gave no label for {', '.join(places)}",
                where="label.labeler",
                hint="use another labeler; nothing of this step was learnt",
            )
        return found

    def _result(self, state: _State, notes: list[str]) -> TrainResult:
        curve = state.curve
        if failed := sum(row.get("failed", 0.0) for row in curve) / len(curve):
            notes.append(f"{failed:.1%} of the pairs have no label: the labeler failed on them")
        if equal := sum(row["label_gap"] == 0 for row in curve):
            notes.append(f"in {equal} of {len(curve)} batches all labels were 0.5: nothing to learn from there")
        metrics = {
            "steps": float(state.step),
            "samples": float(len(curve) * 2 * self.pairs),
            "kl_last": curve[-1]["kl"],
        }
        if not self.judged:
            rewards = [row["reward"] for row in curve]
            half = max(1, len(rewards) // 2)
            metrics |= {
                "reward_first": rewards[0],
                "reward_last": rewards[-1],
                "reward_first_half": sum(rewards[:half]) / half,
                "reward_second_half": sum(rewards[-half:]) / half,
            }
        if state.stopped:
            metrics["stopped"] = float(state.stopped)
        return TrainResult(metrics=metrics, curve=curve, notes=notes)


@dataclass
class _State:
    """What a checkpoint keeps besides tensors. looks: see ``Validation``. stopped: at which step trouble came, or 0."""

    step: int = 0
    curve: list[Row] = field(default_factory=list)
    looks: list[Row] = field(default_factory=list)
    stopped: int = 0


def _score(reward: RewardModel, exchanges: Sequence[Exchange], step: int) -> tuple[list[float], Row]:
    """sigmoid(r(a) - r(b)) of each pair, and the rewards' mean and standard deviation. Raises ``UserError`` where the
    first ones are all the same."""
    scores = shared_rewards(reward, exchanges)
    if step == 1:
        check_signal([exchange.response for exchange in exchanges], scores)
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    differences = torch.tensor(scores[::2], dtype=torch.float64) - torch.tensor(scores[1::2], dtype=torch.float64)
    return torch.sigmoid(differences).tolist(), {"reward": mean, "reward_std": deviation}


def _longest(pairs: Sequence[tuple[Tokens, Tokens]]) -> Callable[[int], int]:
    """The length of a pair's longer side at a place, for ``by_length``."""
    return lambda i: max(len(prompt) + len(answer) for prompt, answer in pairs[i])


def _identity(policy: Path, prompts: Sequence[Prompt]) -> str:
    """So that a second training in one stage does not take up the first one's checkpoints."""
    content = repr((str(policy), [(p.id, [(m.role, m.content) for m in p.messages]) for p in prompts]))
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:12]
