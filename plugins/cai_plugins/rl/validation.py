"""Looking at a policy on the way: does a rising reward still mean better answers?

Bai et al. 2022a (section 4.2) divide their comparisons, train PPO against a preference model of one half and score the
policy with one of the other: where the two part, the policy exploits the first. They plot both against the square root
of the KL, as do Gao et al. 2022. Here, every few steps, the policy answers prompts that it does not learn from; both
reward models score the answers, and the policy that the held-out one liked best is the result.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from cai_core.errors import CAIError, UserError
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.context import StageContext
from cai_core.types.prompts import Prompt
from cai_core.types.records import Conversation, ModelInput
from cai_core.types.reward import Exchange, RewardModel
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.callbacks import KEEP
from cai_plugins._torch.checkpoints import is_whole
from cai_plugins._torch.ranks import gather
from cai_plugins._torch.seeding import derived
from cai_plugins.rl.checks import check_signal, diverged, shared_rewards
from cai_plugins.rl.plugin import ValidationOptions
from cai_plugins.rl.texts import text_rates

Row = dict[str, float]
Item = tuple[Prompt, list[int]]
"""A prompt and its tokens."""
MOST_ASIDE = 5
"""At most one prompt in so many is set aside: our choice."""


class Policy(Protocol):
    """A policy under training. An answer is its tokens, that which ends it included."""

    def sample(self, requests: Sequence[GenerateRequest], prompts: Sequence[list[int]]) -> list[list[int]]:
        """An answer to each request, whose tokens ``prompts`` has."""
        ...

    def text(self, answer: Sequence[int]) -> str:
        """As the reward model reads it."""
        ...

    def ended(self, answer: Sequence[int]) -> bool:
        """Whether the policy ended it."""
        ...

    def kl(self, samples: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """log pi - log ref of each (prompt, answer), in nats."""
        ...


class Validation:
    """Looks, and what follows from them. ``rows``, one per look, is all of its state; the owner saves and restores it.

    reward: that of training, None where there is none. heldout: what the result is chosen by, None: nothing is chosen.
    most_kl, most_empty: a policy above them is never chosen.
    """

    def __init__(
        self,
        options: ValidationOptions,
        context: StageContext,
        policy: Policy,
        prompts: Sequence[tuple[Prompt, list[int]]],
        sampling: Sampling,
        reward: RewardModel | None,
        *,
        most_kl: float = math.inf,
        most_empty: float = 1.0,
    ) -> None:
        self.options = options
        self.policy = policy
        self.reward, self.heldout = reward, context.heldout_reward()
        self.most_kl, self.most_empty = most_kl, most_empty
        self.rows: list[Row] = []
        self.prompts = [prompt for prompt, _ in prompts for _ in range(options.samples)]
        self.ids = [ids for _, ids in prompts for _ in range(options.samples)]
        # The same random numbers at every look: what differs between two is the policy.
        self.requests = [
            GenerateRequest(
                f"{prompt.id}/validation/{k}",
                ModelInput(messages=prompt.messages),
                sampling,
                derived(context.seed, "validation", prompt.id, k),
            )
            for prompt, _ in prompts
            for k in range(options.samples)
        ]

    def due(self, step: int, last: int) -> bool:
        """Whether to look after ``step`` of ``last``."""
        return step % self.options.every == 0 or step == last

    def look(self, step: int) -> Row:
        """Sample and score; the row is kept. Raises ``UserError`` where the held-out reward says nothing at all,
        ``CAIError`` where a score or the KL is not finite."""
        answers = self.policy.sample(self.requests, self.ids)
        texts = [self.policy.text(answer) for answer in answers]
        exchanges = [
            Exchange(request.id, prompt.messages, text)
            for request, prompt, text in zip(self.requests, self.prompts, texts, strict=True)
        ]
        n = len(texts)
        row: Row = {"step": float(step)}
        for name, model in (("reward", self.reward), ("heldout_reward", self.heldout)):
            if model is not None:
                scores = shared_rewards(model, exchanges, where=name)
                if not self.rows and name == "heldout_reward":
                    check_signal(texts, scores, where=name)
                row[name] = math.fsum(scores) / n
                row[f"{name}_std"] = math.sqrt(math.fsum((score - row[name]) ** 2 for score in scores) / n)
                row |= self._by_kind(name, scores)
        row["kl"] = math.fsum(self.policy.kl(list(zip(self.ids, answers, strict=True)))) / n
        row["length"] = sum(len(answer) for answer in answers) / n
        row["missing_end"] = 1 - sum(self.policy.ended(answer) for answer in answers) / n
        row["empty"] = sum(not text.strip() for text in texts) / n
        row |= text_rates([(prompt.id, text) for prompt, text in zip(self.prompts, texts, strict=True)])
        (row, *_) = gather(row)  # processes that round differently must not decide differently
        if not math.isfinite(row["kl"]):
            raise diverged(step, "the KL of the policy to the one as given", row["kl"], "lower learning_rate")
        self.rows.append(row)
        return row

    def _by_kind(self, name: str, scores: Sequence[float]) -> Row:
        """Mean and standard deviation over the prompts of each kind; nothing where there is one kind."""
        k, found = self.options.samples, Row()
        for kind in self.kinds if len(self.kinds) > 1 else ():
            means = [
                math.fsum(scores[at : at + k]) / k for at in range(0, len(scores), k) if self.prompts[at].kind == kind
            ]
            found[f"{name}_{kind}"] = mean = math.fsum(means) / len(means)
            found[f"{name}_{kind}_std"] = math.sqrt(math.fsum((one - mean) ** 2 for one in means) / len(means))
        return found

    @property
    def kinds(self) -> dict[str, int]:
        """How many prompts of each kind are looked at."""
        return dict(Counter({prompt.id: prompt.kind for prompt in self.prompts}.values()))

    @property
    def spared(self) -> list[int]:
        """Steps whose checkpoints may still become the result, should the last checkpoint turn out damaged."""
        return self.bests[-KEEP:]

    @property
    def bests(self) -> list[int]:
        """The steps at which the held-out reward was higher than at all looks before."""
        found: list[int] = []
        highest = -math.inf
        for row in self.rows if self.heldout is not None else ():
            sound = row["kl"] <= self.most_kl and row["empty"] < self.most_empty  # NaN is not
            if sound and row["heldout_reward"] > highest:
                highest = row["heldout_reward"]
                found.append(int(row["step"]))
        return found

    @property
    def best(self) -> int | None:
        """The step whose policy is to be the result; None where nothing chooses."""
        return self.bests[-1] if self.bests else None

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` has run out."""
        best, patience = self.best, self.options.patience
        if best is None or patience is None:
            return False
        return sum(row["step"] > best for row in self.rows) >= patience

    def report(self, last: int) -> dict[str, Any]:
        """What came of it, see ``docs/reference/results.md``; last: the steps that were asked for."""
        return {
            "best": self.best,
            "stopped": int(self.rows[-1]["step"]) if self.exhausted and self.rows[-1]["step"] < last else None,
            "why": self._why(last),
            "prompts": len({prompt.id for prompt in self.prompts}),
            "answers": len(self.prompts),
            "kinds": self.kinds,
            "rows": self.rows,
        }

    def _why(self, last: int) -> str:
        best = self.best
        if best is None:
            if self.heldout is not None:
                return "no look found a policy in order: nothing was chosen"
            return "no held-out reward model (`heldout_reward` in the recipe): the last policy is the result, unchosen"
        start, end = self.rows[0], self.rows[-1]
        chosen = next(row for row in self.rows if row["step"] == best)
        at = f"{chosen['heldout_reward']:.3f}"
        if best == 0:
            text = (
                f"the result is the policy as given: no later one had a higher held-out reward than its {at}, at "
                f"{len(self.rows)} looks"
            )
        else:
            unsure = "" if self._beyond_chance(start, chosen) else ", which may be chance"
            text = (
                f"the result is the policy after step {best} of {last}: it has the highest held-out reward of "
                f"{len(self.rows)} looks, {at} against {start['heldout_reward']:.3f} at the start{unsure}, at a KL of "
                f"{chosen['kl']:.2f} nats"
            )
        if self.exhausted and end["step"] < last:
            text += f"; training stopped at step {end['step']:.0f}, as {self.options.patience} looks saw no better one"
        if "reward" in end and end["reward"] > chosen["reward"] and end["heldout_reward"] < chosen["heldout_reward"]:
            verdict = "over-optimisation" if self._beyond_chance(end, chosen) else "over-optimisation, or chance"
            text += (
                f". From there to step {end['step']:.0f} the reward rose from {chosen['reward']:.3f} to "
                f"{end['reward']:.3f} while the held-out reward fell to {end['heldout_reward']:.3f}: {verdict}"
            )
        return text

    def _beyond_chance(self, lower: Row, higher: Row) -> bool:
        """Whether two looks' held-out rewards are two standard errors apart, as if their answers were independent."""
        variances = [row["heldout_reward_std"] ** 2 for row in (lower, higher)]
        error = math.sqrt(sum(variances) / len(self.prompts))
        return higher["heldout_reward"] - lower["heldout_reward"] > 2 * error


def checkpoint(folder: Path, step: int) -> Path:
    """That of the best look. Raises ``CAIError`` where the disk has lost it."""
    found = folder / f"checkpoint-{step}"
    if not is_whole(found):
        raise CAIError(
            f"the checkpoint of the best look, step {step}, is damaged or gone",
            where=str(found),
            hint=f"remove {folder} and give the same command again: the stage is made from its beginning",
        )
    return found


def told(result: TrainResult, validation: Validation | None, last: int) -> TrainResult:
    """``result`` with what came of the looks, if there were any, among its metrics, notes and ``extra``."""
    if validation is None:
        return result
    report = validation.report(last)
    metrics = {**result.metrics, "validation_looks": float(len(validation.rows))}
    if validation.best is not None:
        metrics["validation_best"] = float(validation.best)
    return replace(
        result,
        metrics=metrics,
        notes=[report["why"], *result.notes],
        extra={**result.extra, "validation": report},
    )


def wanted(options: ValidationOptions | None, context: StageContext) -> ValidationOptions | None:
    """The options, or the defaults where none are given and the recipe has a held-out reward model."""
    if options is None and context.heldout_reward() is not None:
        return ValidationOptions()
    return options


def set_aside(
    items: Sequence[Item], options: ValidationOptions, seed: int, key: Callable[[Item], str]
) -> tuple[list[Item], list[Item]]:
    """What is learnt from, in its order, and what is looked at: ``options.prompts`` of the items, but no more than a
    fifth, chosen by hash of ``key``. Equal texts are on one side; where none is rare enough for that, the rarest is
    looked at. Raises ``UserError`` where there is nothing to spare."""
    texts: dict[Conversation, list[int]] = {}
    for i, (prompt, _) in enumerate(items):
        texts.setdefault(prompt.messages, []).append(i)
    if len(texts) < 2:
        equal = f", {len(items)} times" if len(items) > len(texts) else ""
        raise UserError(
            f"validation needs a prompt that is not learnt from, and there are {len(texts)}{equal}",
            where="rl.validation",
            hint="give more prompts, or leave `validation` and `heldout_reward` out",
        )
    count = max(1, min(options.prompts, len(items) // MOST_ASIDE))
    ranked = sorted(texts.values(), key=lambda places: derived(seed, "aside", key(items[places[0]])))
    aside = set[int]()
    for places in ranked:
        if len(aside) + len(places) <= count:
            aside.update(places)
    aside = aside or set(min(ranked, key=len))
    return (
        [item for i, item in enumerate(items) if i not in aside],
        [item for i, item in enumerate(items) if i in aside],
    )
