"""A reward without training: the judge rates each answer from 1 to 10 (direct RLAIF, Lee et al. 2023).

Kept of it: the likelihood of every score is read and normalised, and the reward is their mean, so that a judge which
hesitates between 6 and 7 gives 6.5. Left out: the rescaling to [-1, 1], since only differences between rewards count.
Added: the rating is under a principle of the constitution.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from cai_core.errors import CAIError, UserError
from cai_core.types.context import StageContext
from cai_core.types.records import Conversation
from cai_core.types.reward import Exchange, Preference
from cai_core.types.trainer import TrainResult
from cai_plugins.rewards.agreement import agreement, check_labels, chosen, sides
from cai_plugins.rewards.asking import Asking
from cai_plugins.rewards.plugin import JudgeOptions

FILE = "judge.json"
PREFILL = "Rating:"
# "/10" ends each: " 1" alone would also be the beginning of " 10", and with tokens of one digit count its probability.
RATINGS = tuple(f" {n}/10" for n in range(1, 11))


class JudgeReward:
    """See ``RewardModel``. A score is in [1, 10]: the mean of the ten ratings by their probabilities, and of that over
    the principles asked. ``fit`` learns nothing and writes down the principles, so that RL and evaluation rate by the
    same ones. Equal answers to one prompt have equal scores."""

    def __init__(self, options: JudgeOptions, context: StageContext) -> None:
        self.context = context
        self._use(options, [], 0)

    def _use(self, options: JudgeOptions, principles: Sequence[str], seed: int) -> None:
        self.options = options
        self.principles = list(principles)
        self.seed = seed
        self._asking = Asking(
            self.context, RATINGS, PREFILL, options.format, tolerant=options.unrated is not None
        )

    def fit(self, model: Path, preferences: Sequence[Preference], out: Path) -> TrainResult:
        """Write ``judge.json``; check the judge; report how often it agrees with the labels (``agreement``), the
        probability on the ten ratings together (``rating_mass``) and how spread its ratings are."""
        check_labels(preferences)
        principles = [p.comparison for p in self.context.constitution.principles if p.comparison]
        if not principles:
            raise UserError(
                "no principle has a comparison text, which a rating is given under",
                where="constitution",
                hint="give its principles `comparison`, or choose another constitution",
            )
        self._use(self.options, principles, self.context.seed)
        self._asking.check()
        out.mkdir(parents=True, exist_ok=True)
        options = self.options.model_dump(mode="json", include=set(JudgeOptions.model_fields))
        content = {"options": options, "principles": self.principles, "seed": self.seed}
        (out / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        some = chosen(preferences, self.options.measure)
        rated = self._rate(sides(some))
        scores = [score for score, _ in rated]
        masses = [mass for _, found in rated for mass in found]
        asked = len(rated) * len(self._drawn(some[0].prompt)) if some else 0
        metrics = {**agreement(some, scores), "questions": float(asked), "unrated": float(asked - len(masses))}
        notes = ["judge: nothing was trained"]
        if masses:
            metrics["rating_mass"] = sum(masses) / len(masses)
            metrics["rating_mean"] = sum(scores) / len(scores)
            metrics["rating_lowest"], metrics["rating_highest"] = min(scores), max(scores)
            if metrics["rating_mass"] < 0.5:  # our choice: otherwise most of what it would say is no rating
                notes.append(
                    f"the judge puts {metrics['rating_mass']:.0%} of its probability on the ten ratings: it would "
                    "rather write something else, and its ratings mean little"
                )
        return TrainResult(metrics=metrics, notes=notes)

    def load(self, path: Path) -> None:
        """Use the options, principles and seed written in ``path``."""
        try:
            content = json.loads((path / FILE).read_text(encoding="utf-8"))
            options = JudgeOptions.model_validate_json(json.dumps(content["options"]))
            self._use(options, [str(p) for p in content["principles"]], int(content["seed"]))
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise UserError(f"not what a judge's `fit` wrote: {error}", where=str(path / FILE)) from error

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """See ``RewardModel``. Raises ``CAIError`` naming an answer that the judge could not rate, unless ``unrated``
        says what it gets; a fault of machine or server always stops."""
        return [score for score, _ in self._rate(exchanges)]

    def _rate(self, exchanges: Sequence[Exchange]) -> list[tuple[float, list[float]]]:
        """Score and masses (of its readable ratings) of each answer."""
        if not self.principles:
            raise CAIError("the reward model was neither fitted nor loaded")
        drawn = [self._drawn(exchange.prompt) for exchange in exchanges]
        pairs = zip(exchanges, drawn, strict=True)
        readings = iter(self._asking.ask([(e, question(p)) for e, principles in pairs for p in principles]))
        found = []
        for principles in drawn:
            own = [next(readings) for _ in principles]
            values = [self.options.unrated if r is None else expectation(r.p) for r in own]
            score = sum(v for v in values if v is not None) / len(values)
            found.append((score, [r.mass for r in own if r is not None]))
        return found

    def _drawn(self, prompt: Conversation) -> list[str]:
        """By the prompt and not by the answer: answers to one prompt are compared with each other, and one rated for
        kindness says nothing beside one rated for honesty."""
        if self.options.principles == "all":
            return self.principles
        text = repr((self.seed, [(m.role, m.content) for m in prompt]))
        return [random.Random(text).choice(self.principles)]


def expectation(p: Sequence[float]) -> float:
    """The sum of n times p(n) over the ratings n = 1 to 10, held within them against rounding."""
    return min(max(sum(n * value for n, value in enumerate(p, 1)), 1.0), 10.0)


def question(principle: str) -> str:
    """The request for a rating. Principles are worded for a choice, so it says how to read one."""
    return (
        f"A principle for choosing among several responses: {principle}\n\n"
        "How well does this one response follow the principle? Rate it on a scale from 1/10 (not at all) to 10/10 "
        "(fully). Answer with the rating and nothing else."
    )
