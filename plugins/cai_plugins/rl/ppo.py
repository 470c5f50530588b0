"""PPO on answers to prompts, the algorithm of the paper.

Kept of Bai et al. 2022a (the paper's RL settings are theirs): the reward of an answer is the preference model's score
less beta times the KL divergence to the policy as given, clip 0.2, gamma 1, no entropy bonus, at most 128 tokens. Of
Schulman et al. 2017: the clipped surrogate, GAE, passes over minibatches. Of Ziegler et al. 2019: the KL divergence
token by token inside the reward, its adaptive control, a clipped value loss, a price on answers that do not end. Of
Stiennon et al. 2020: the value function may be a model of its own that begins as the preference model.

Left out: prompts in the mixture that keep a language-modelling loss (Ouyang et al. 2022), the entropy bonus, a running
normalisation of scores, training of the value function before the policy, and dropout, which would make the ratio of
a policy to itself a random number. The paper trains all weights; here adapters by default, and the reference is then
the policy with its adapters switched off.

Every random number comes from the stage's seed and what it is for (prompt, step, sample), none from a running
generator, so a checkpoint between two batches of samples is all that a restart needs. Several processes share the
samples of a batch, and what they find is put together before anything is made of it. No ``vllm``.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import set_seed

from cai_core.errors import UserError
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.component import EXECUTION
from cai_core.types.context import StageContext
from cai_core.types.prompts import Prompt
from cai_core.types.records import ModelInput
from cai_core.types.reward import Exchange, RewardModel
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.callbacks import micro_batch, quiet
from cai_plugins._torch.chat import Chat
from cai_plugins._torch.checkpoints import last_whole
from cai_plugins._torch.loading import load_classifier, load_tokenizer
from cai_plugins._torch.lora import lora_config, save_merged
from cai_plugins._torch.ranks import gather, rank, sum_up, world
from cai_plugins._torch.seeding import derived, seed32
from cai_plugins.rl.advantages import (
    explained_variance,
    gae,
    kl_k1,
    kl_k3,
    masked_mean,
    next_beta,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from cai_plugins.rl.astray import last_good, stopped, trouble
from cai_plugins.rl.checks import check_answers, check_signal, diverged, shared_rewards
from cai_plugins.rl.learner import Learner
from cai_plugins.rl.live import no_dropout
from cai_plugins.rl.plugin import PPOOptions, ValidationOptions
from cai_plugins.rl.prompts import fitting, layout, left_out
from cai_plugins.rl.samples import Tokens, answer_logits, by_length, forward_inputs, only_answers, tokens_of
from cai_plugins.rl.snapshots import check_snapshots, spared, write_snapshots
from cai_plugins.rl.texts import text_rates
from cai_plugins.rl.validation import Validation, checkpoint, set_aside, told, wanted

Row = dict[str, float]
HINT = "lower learning_rate, or raise beta"


class PPO:
    """See ``RLAlgorithm``. A row of the curve is a batch of samples: what the policy did there (``reward``, ``kl``,
    ...) before it learnt from it, and how it learnt (``clip_fraction``, ``policy_kl``, ...). Learning rate 0 leaves the
    weights as they are. Training that has gone astray (``max_kl``, ``max_empty``) ends early, and the result is the
    last checkpoint whose policy had been seen to be in order; the notes and ``metrics["stopped"]`` say so."""

    def __init__(self, options: PPOOptions, context: StageContext) -> None:
        quiet()
        self.options = options
        self.context = context
        self.batch = options.prompts_per_step * options.samples_per_prompt
        if self.batch % options.minibatches:
            raise UserError(
                f"minibatches {options.minibatches} does not divide "
                f"prompts_per_step x samples_per_prompt = {self.batch}",
                where="rl.minibatches",
                hint="choose a divisor of it",
            )
        self.size = self.batch // options.minibatches
        of = f"prompts_per_step x samples_per_prompt / minibatches = {self.size}"
        self.micro = micro_batch(options, self.size, "rl", of)
        if options.critic_model is not None and options.critic == "head":
            raise UserError(
                "critic_model is set, and the critic is a head on the policy",
                where="rl.critic_model",
                hint="set `critic: separate`, or leave it out",
            )

    def train(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel, out: Path) -> TrainResult:
        """See ``RLAlgorithm``. Raises ``UserError`` where the first batch of samples has nothing to teach: the same
        reward for all of several answers, or hardly an answer with text."""
        options, seed = self.options, self.context.seed
        tokenizer = load_tokenizer(policy)
        chat = Chat(tokenizer, policy)
        usable, ids = fitting(chat, policy, prompts, options.max_new_tokens)
        notes = left_out(prompts, usable)
        watched, aside = wanted(options.validation, self.context), list[tuple[Prompt, list[int]]]()
        if watched is not None:
            kept, aside = set_aside(list(zip(usable, ids, strict=True)), watched, seed, lambda item: item[0].id)
            usable, ids = [prompt for prompt, _ in kept], [tokens for _, tokens in kept]
        check_snapshots(options.snapshots, options.steps)
        order = layout(len(usable), options.steps * options.prompts_per_step, seed32(seed, "prompts"))
        set_seed(seed32(seed, "train"))  # adapters begin with random numbers
        learner = _Learner(options, self.context, policy, tokenizer, self.micro)
        folder = learner.folder(f"ppo-{_identity(options, self.context, policy, usable)}")

        def restored(saved: Path | None) -> _State:
            return _State(beta=options.beta) if saved is None else _State(**learner.load(saved))

        state = restored(last_whole(folder))
        validation = None
        if watched is not None:
            validation = self._validation(watched, learner, aside, reward)
            validation.rows = state.looks
        if aside:
            notes.append(f"{len(aside)} prompts are for validation and are not learnt from")
        if len(usable) < options.prompts_per_step:
            notes.append(f"{len(usable)} prompts for prompts_per_step {options.prompts_per_step}: batches repeat them")

        for step in range(state.step + 1, options.steps + 1):
            if validation is not None and validation.exhausted:
                break
            clock = _Clock(state.seconds)
            if validation is not None and not state.looks:
                with clock("validation"):
                    validation.look(0)
            chosen = order[(step - 1) * options.prompts_per_step : step * options.prompts_per_step]
            requests = self._requests([usable[i] for i in chosen], step)
            repeated = [ids[i] for i in chosen for _ in range(options.samples_per_prompt)]
            with clock("rollout"):
                answers = learner.sample(requests, repeated)
            samples = list(zip(repeated, answers, strict=True))
            texts = [learner.text(answer) for answer in answers]
            with clock("score"):
                scores = shared_rewards(
                    reward, [Exchange(r.id, r.input.messages, t) for r, t in zip(requests, texts, strict=True)]
                )
            with clock("forward"):
                seen = learner.measure(samples)
            ended = [learner.ended(answer) for answer in answers]
            row = _observed(step, scores, texts, ended, seen, state.beta)
            names = [usable[i].id for i in chosen for _ in range(options.samples_per_prompt)]
            row |= text_rates(list(zip(names, texts, strict=True)))
            if step == 1:
                check_answers(texts, options.max_empty)
                check_signal(texts, scores)
            if found := trouble(row, options.max_kl, options.max_empty):
                good = last_good(folder, step, found, validation)
                state.step, state.stopped = state.step if good is None else restored(good).step, step
                state.curve.append({name: value for name, value in row.items() if math.isfinite(value)})
                notes.append(stopped(found, step, options.steps, None if good is None else state.step))
                break

            penalties = torch.tensor([0.0 if end else options.missing_end_penalty for end in ended])
            rewards = token_rewards(torch.tensor(scores) - penalties, seen.kl, seen.mask, state.beta)
            if options.whiten_rewards:
                rewards = whiten(rewards, seen.mask, shift=False)
            advantages, returns = gae(rewards, seen.values, seen.mask, options.gamma, options.lam)
            row["explained_variance"] = explained_variance(seen.values, returns, seen.mask)
            if options.whiten_advantages:
                advantages = whiten(advantages, seen.mask)
            with clock("update"):
                row |= self._update(learner, step, samples, seen, advantages, returns)
            if options.kl_control == "adaptive":
                state.beta = next_beta(state.beta, row["kl"], options.kl_target, options.kl_gain)
            state.step = step
            state.curve.append(row)
            if validation is not None and validation.due(step, options.steps):
                with clock("validation"):
                    validation.look(step)
            best = validation.best if validation is not None else None
            if step % options.save_steps == 0 or step in (options.steps, best, *options.snapshots):
                learner.save(folder / f"checkpoint-{step}", asdict(state), spared(options.snapshots, validation))
            self.context.progress.update(step, options.steps, "batches of samples")

        best = validation.best if validation is not None else None
        if best and best != state.step:
            learner.load(checkpoint(folder, best))
        save_merged(learner.result(best), tokenizer, out)
        notes += write_snapshots(options, state.step, folder, policy, self.context.device, tokenizer, out)
        return told(self._result(state, notes), validation, options.steps)

    # before training ---------------------------------------------------------------------------------------------

    def _validation(
        self,
        options: ValidationOptions,
        learner: _Learner,
        aside: Sequence[tuple[Prompt, list[int]]],
        reward: RewardModel,
    ) -> Validation:
        own = self.options
        return Validation(
            options,
            self.context,
            learner,
            aside,
            Sampling(own.max_new_tokens, own.temperature),
            reward,
            most_kl=math.inf if own.max_kl is None else own.max_kl,
            most_empty=own.max_empty,
        )

    # a step ------------------------------------------------------------------------------------------------------

    def _requests(self, prompts: Sequence[Prompt], step: int) -> list[GenerateRequest]:
        options = self.options
        sampling = Sampling(options.max_new_tokens, options.temperature)
        count: Counter[str] = Counter()  # a prompt comes twice where one pass over them ends and the next begins
        requests = []
        for prompt in prompts:
            for _ in range(options.samples_per_prompt):
                k = count[prompt.id]
                count[prompt.id] += 1
                seed = derived(self.context.seed, "rollout", prompt.id, step, k)
                given = ModelInput(messages=prompt.messages)
                requests.append(GenerateRequest(f"{prompt.id}/{step}/{k}", given, sampling, seed))
        return requests

    def _update(
        self,
        learner: _Learner,
        step: int,
        samples: Sequence[Tokens],
        seen: _Seen,
        advantages: Tensor,
        returns: Tensor,
    ) -> Row:
        """``epochs`` passes over the samples, an optimizer step per minibatch. A token counts the same whatever answer,
        minibatch or micro-batch it is in."""
        options = self.options
        sums: defaultdict[str, float] = defaultdict(float)  # over the tokens of this process
        same: defaultdict[str, float] = defaultdict(float)
        most, steps = 0.0, 0
        for epoch in range(options.epochs):
            order = list(range(len(samples)))
            random.Random(seed32(self.context.seed, "minibatches", step, epoch)).shuffle(order)
            for start in range(0, len(order), self.size):
                chosen = order[start : start + self.size]
                tokens = int(seen.mask[chosen].sum())
                for rows in by_length(chosen, tokens_of(samples), self.micro, rank(), world()):
                    width = max(len(samples[i][1]) for i in rows)
                    mask, old, before, wanted, gain = (
                        part[rows, -width:].to(self.context.device)
                        for part in (seen.mask, seen.logp, seen.values, returns, advantages)
                    )
                    logp, values, _ = learner.forward([samples[i] for i in rows], learning=True)
                    change = logp - old
                    of_policy = policy_loss(change, gain, mask, options.clip).sum() / tokens
                    of_value = value_loss(values, before, wanted, mask, options.value_clip).sum() / tokens
                    loss = of_policy + options.value_coef * of_value
                    if not torch.isfinite(loss):
                        raise diverged(step, "the loss", float(loss.detach()), HINT)
                    learner.backward(of_policy, options.value_coef * of_value)
                    with torch.no_grad():
                        change = torch.where(mask, change, 0)
                        ratio = change.exp()
                        sums["policy_loss"] += float(of_policy)
                        sums["value_loss"] += float(of_value)
                        sums["ratio"] += float(torch.where(mask, ratio, 0).sum()) / tokens
                        sums["clip_fraction"] += float(((ratio - 1).abs() > options.clip).sum()) / tokens
                        # KL of the policy that sampled to the one under training: k3 with the roles changed.
                        sums["policy_kl"] += float(kl_k3(-change).sum()) / tokens
                        most = max(most, float(ratio.max()))
                same["learning_rate"] += learner.parts["policy"].rate
                norm = learner.step()
                if not math.isfinite(norm):
                    raise diverged(step, "the gradient's norm", norm, HINT)
                same["grad_norm"] += norm
                steps += 1
        totals = sum_up(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
        same |= dict(zip(sums, totals, strict=True))
        return {**{name: value / steps for name, value in same.items()}, "ratio_max": max(gather(most))}

    # afterwards --------------------------------------------------------------------------------------------------

    def _result(self, state: _State, notes: list[str]) -> TrainResult:
        curve, seconds = state.curve, state.seconds
        rewards = [row["reward"] for row in curve]
        half = max(1, len(rewards) // 2)
        flat = sum(row["reward_min"] == row["reward_max"] for row in curve)
        if flat:
            notes.append(
                f"in {flat} of {len(curve)} batches all samples had the same reward: nothing to learn from there"
            )
        cut = sum(row["missing_end"] for row in curve[-half:]) / half
        if cut > 0.5:
            notes.append(
                f"{cut:.0%} of the answers of the second half did not end within max_new_tokens: the reward model "
                "judged pieces; raise max_new_tokens, or set missing_end_penalty"
            )
        whole = sum(seconds.values())
        if whole:
            shares = ", ".join(f"{name} {value / whole:.0%}" for name, value in seconds.items())
            notes.append(f"time: {whole:.0f} s, of which {shares}")
        metrics = {
            "steps": float(state.step),
            "samples": float(len(curve) * self.batch),
            "reward_first": rewards[0],
            "reward_last": rewards[-1],
            "reward_first_half": sum(rewards[:half]) / half,
            "reward_second_half": sum(rewards[-half:]) / half,
            "beta_last": state.beta,
            **{f"seconds_{name}": value for name, value in seconds.items()},
        }
        if "kl" in curve[-1]:
            metrics["kl_last"] = curve[-1]["kl"]
        if state.stopped:
            metrics["stopped"] = float(state.stopped)
        return TrainResult(metrics=metrics, curve=curve, notes=notes)


@dataclass
class _State:
    """What a checkpoint keeps besides tensors. beta: of the next step. looks: see ``Validation``. stopped: at which
    step trouble came, or 0."""

    beta: float
    step: int = 0
    curve: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    looks: list[Row] = field(default_factory=list)
    stopped: int = 0


@dataclass(frozen=True)
class _Seen:
    """What the policy, before an update, makes of each token that it drew: [samples, columns], answers at the right
    end. kl: log pi - log ref. entropy: of the distribution that the token was drawn from, in nats."""

    mask: Tensor
    logp: Tensor
    kl: Tensor
    values: Tensor
    entropy: Tensor


class _Learner(Learner):
    """The policy under training with its value function."""

    def __init__(self, options: PPOOptions, context: StageContext, policy: Path, tokenizer: Any, micro: int) -> None:
        super().__init__(
            options,
            context,
            policy,
            tokenizer,
            micro=micro,
            per_pass=micro,
            batch=options.prompts_per_step * options.samples_per_prompt // options.minibatches,
            updates=options.steps * options.epochs * options.minibatches,
            rows=options.rollout_rows,
            budget=options.token_budget,
        )
        rate = options.learning_rate if options.critic_learning_rate is None else options.critic_learning_rate
        self.head = options.critic == "head"
        critic = _Head(self.given) if self.head else _Separate(options, policy, tokenizer, context.device)
        self.parts["critic"] = self.part(critic, rate, whole=self.head)

    # reading -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        samples: Sequence[Tokens],
        *,
        reference: bool = False,
        learning: bool = False,
        entropy: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """For each token of the answers, at the right end of [rows, columns]: its log-probability at the sampling's
        temperature, the value before it (zeros for the reference), and the entropy where asked for. What stands before
        a shorter answer means nothing. ``learning``: by what learns, else, where weights are shared out, by the copy,
        which is fresh since the last ``sample``."""
        inputs, width = forward_inputs(samples, self.pad, self.rollouts.takes, self.model.device)
        ids, critic = inputs["input_ids"], self.parts["critic"].model
        head = self.head and not reference
        with self._as(reference) as model, self._precision():
            called = self.parts["policy"].model if learning else model
            output = called(**inputs, **only_answers(width, self.rollouts.takes), output_hidden_states=head)
        logits = answer_logits(output.logits, width, self.options.temperature)
        shares = logits.log_softmax(-1)
        logp = shares.gather(-1, ids[:, -width:, None])[..., 0]
        if head:
            values = critic(output.hidden_states[-1][:, -width - 1 : -1])
        elif reference:
            values = torch.zeros_like(logp)
        else:
            with self._precision():
                values = critic(inputs)[:, -width - 1 : -1]
        return logp, values, torch.special.entr(shares.exp()).sum(-1) if entropy else None

    @torch.no_grad()
    def measure(self, samples: Sequence[Tokens]) -> _Seen:
        """The policy as it is on what it sampled, in micro-batches of similar length. Each process reads a part of it,
        of as many samples as the others, and gets all that was found."""
        width = max(len(answer) for _, answer in samples)
        columns = torch.arange(width)
        mask = torch.stack([columns >= width - len(answer) for _, answer in samples])
        logp, ref, values, entropy = (torch.zeros(mask.shape) for _ in range(4))
        batches = list(by_length(range(len(samples)), tokens_of(samples), self.micro, rank(), world()))
        for rows in batches:
            read = self.forward([samples[i] for i in rows], entropy=True)
            for whole, part in zip((logp, values, entropy), read, strict=True):
                assert part is not None
                whole[rows, -part.shape[1] :] = part.cpu()
        for rows in batches:
            part, _, _ = self.forward([samples[i] for i in rows], reference=True)
            ref[rows, -part.shape[1] :] = part.cpu()
        found = torch.where(mask, torch.stack([logp, ref, values, entropy]), 0)
        logp, ref, values, entropy = sum_up(found)  # a row is read by one process and 0 in the others
        return _Seen(mask, logp, kl_k1(logp - ref), values, entropy)

    # learning ----------------------------------------------------------------------------------------------------

    def backward(self, of_policy: Tensor, of_value: Tensor) -> None:
        """Gradients of both losses on top of those there are. Where the critic is a head on the policy, the policy
        learns from both."""
        if self.head:
            self.parts["policy"].backward(of_policy + of_value)
        else:
            self.parts["policy"].backward(of_policy)
            self.parts["critic"].backward(of_value)

    def step(self) -> float:
        """One optimizer step; the norm of the policy's gradient before it was scaled down, or one that is not finite.
        The critic's gradient is scaled by itself: it must not shorten the policy's."""
        norms = [part.step() for part in self.parts.values()]
        return next((norm for norm in norms if not math.isfinite(norm)), norms[0])


class _Head(nn.Module):
    """A linear value function of the policy's last hidden state. It begins at zero, so that the first advantages are
    plain returns and not those of random numbers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(model.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[rows, columns, hidden] to [rows, columns]."""
        return self.linear(states.float())[..., 0]


class _Separate(nn.Module):
    """A model of its own with a score at every token: a preference model goes on from its own scores, a causal model
    begins at zero."""

    def __init__(self, options: PPOOptions, policy: Path, tokenizer: Any, device: str) -> None:
        super().__init__()
        path = options.critic_model or policy
        if load_tokenizer(path, chat=False).get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"{path} has another tokenizer than the policy, and a critic reads the policy's tokens",
                where="rl.critic_model",
                hint="use a preference model that was trained from the same base model, or `critic: head`",
            )
        classifier, new = load_classifier(path, device)
        if not hasattr(classifier, "score"):
            raise UserError(
                f"{path} keeps its score under another name than `score`",
                where="rl.critic_model",
                hint="use `critic: head`",
            )
        no_dropout(classifier)
        classifier.eval()
        if new:
            nn.init.zeros_(classifier.score.weight)
        self.whole = get_peft_model(classifier, lora_config(options.lora, "SEQ_CLS")) if options.lora else classifier
        self._plain = [classifier]  # in a list: it is a part of ``whole`` already
        self._no_split_modules = classifier._no_split_modules  # read where it is shared out

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        """What a model takes to [rows, columns]."""
        classifier = self._plain[0]
        trunk = getattr(classifier, classifier.base_model_prefix)
        return classifier.score(trunk(**inputs).last_hidden_state)[..., 0].float()


class _Clock:
    """Adds up seconds by name."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time inside under ``name``."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _observed(
    step: int, scores: Sequence[float], texts: Sequence[str], ended: Sequence[bool], seen: _Seen, beta: float
) -> Row:
    """What a batch of samples shows of the policy that drew it. Rewards are the reward model's, without KL and
    penalties; KL is in nats per answer, entropy in nats per token, length in tokens."""
    values = torch.tensor(scores, dtype=torch.float64)
    quantiles = torch.quantile(values, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    k3 = torch.where(seen.mask, kl_k3(seen.kl), 0)
    n = len(scores)
    return {
        "step": float(step),
        "reward": float(values.mean()),
        "reward_std": float(values.std(correction=0)),
        "reward_min": float(values.min()),
        "reward_q10": quantiles[0],
        "reward_median": quantiles[1],
        "reward_q90": quantiles[2],
        "reward_max": float(values.max()),
        "kl": float(seen.kl.sum()) / n,
        "kl_k3": float(k3.sum()) / n,
        "beta": beta,
        "entropy": float(masked_mean(seen.entropy, seen.mask)),
        "length": float(seen.mask.sum()) / n,
        "missing_end": 1 - sum(ended) / n,
        "empty": sum(not text.strip() for text in texts) / n,
    }


def _identity(options: PPOOptions, context: StageContext, policy: Path, prompts: Sequence[Prompt]) -> str:
    """So that no checkpoint of another configuration is ever taken up. Options that only say how the work is done may
    change between a crash and the restart."""
    told = {
        name: value
        for name, value in options.model_dump(mode="json").items()
        if not EXECUTION.items() <= (type(options).model_fields[name].json_schema_extra or {}).items()  # type: ignore[union-attr]
    }
    files = sorted((file.name, file.stat().st_size) for file in policy.glob("*") if file.is_file())
    asked = [(p.id, [(m.role, m.content) for m in p.messages]) for p in prompts]
    content = repr((told, context.seed, context.device, str(policy), files, asked))
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:12]
