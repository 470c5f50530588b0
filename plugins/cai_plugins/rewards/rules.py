"""A reward that is written down instead of learnt: weighted checks of the text, and statements put to a judge (in the
spirit of rule-based rewards, Mu et al. 2024, with fixed weights)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import regex
from pydantic import ValidationError

from cai_core.errors import UserError
from cai_core.text.quality import bare_refusal, repeats, too_many_emoji
from cai_core.text.refusals import grade
from cai_core.types.context import StageContext
from cai_core.types.reward import Exchange, Preference
from cai_core.types.trainer import TrainResult
from cai_plugins.rewards.agreement import agreement, check_labels, sides
from cai_plugins.rewards.asking import Asking
from cai_plugins.rewards.plugin import RulesOptions

FILE = "rules.json"
PREFILL = "The answer is:"
YES_NO = (" yes", " no")
SEARCHED = 20_000
"""Characters of an answer that the checks look at; ours, far over any answer of RL."""
SECONDS = 1.0
"""Processor time that one expression may take on one answer. Ours: a sound one takes a few milliseconds on 20,000
characters, one that tries every way to split them takes longer than any run."""
REFUSES = {"refuse": 1.0, "partial": 0.5, "comply": 0.0}


class Rules:
    """See ``RewardModel``. ``fit`` writes the options down and learns nothing; ``load`` takes what is written. Only
    propositions look at the prompt, and only they ask the judge."""

    def __init__(self, options: RulesOptions, context: StageContext) -> None:
        self.context = context
        self._use(options)

    def _use(self, options: RulesOptions) -> None:
        self.options = options
        self._patterns = [regex.compile(p.regex, regex.IGNORECASE) for p in options.patterns]
        self._asking = Asking(
            self.context, YES_NO, PREFILL, options.format, tolerant=options.unrated is not None
        )

    def fit(self, model: Path, preferences: Sequence[Preference], out: Path) -> TrainResult:
        """Write ``rules.json``; report how often the rules agree with the labels."""
        check_labels(preferences)
        if self.options.propositions:
            self._asking.check()
        out.mkdir(parents=True, exist_ok=True)
        content = self.options.model_dump_json(indent=2, include=set(RulesOptions.model_fields))
        (out / FILE).write_text(content, encoding="utf-8")
        metrics = agreement(preferences, self.score(sides(preferences)))
        return TrainResult(metrics=metrics, notes=["rules: nothing was trained"])

    def load(self, path: Path) -> None:
        """Use the rules written in ``path``."""
        try:
            self._use(RulesOptions.model_validate_json((path / FILE).read_text(encoding="utf-8")))
        except (OSError, ValidationError) as error:
            raise UserError(f"not the rules of a reward model: {error}", where=str(path / FILE)) from error

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """See ``RewardModel``. Raises ``UserError`` when an expression takes longer than a second on an answer, and
        what ``Asking`` raises where there are propositions."""
        scores = [self._score(exchange.response) for exchange in exchanges]
        propositions = self.options.propositions
        if propositions:
            readings = iter(self._asking.ask([(e, question(p.statement)) for e in exchanges for p in propositions]))
            for i in range(len(exchanges)):
                for proposition in propositions:
                    reading = next(readings)
                    yes = self.options.unrated if reading is None else reading.p[0]
                    assert yes is not None
                    scores[i] += proposition.weight * yes
        return scores

    def _score(self, answer: str) -> float:
        options, text = self.options, answer[:SEARCHED]
        words = text.lower().split()
        total = sum(options.patterns[i].weight for i in range(len(self._patterns)) if self._found(i, text))
        near = max(0.0, 1 - abs(len(words) - options.target_words) / options.target_words)
        pairs = list(pairwise(words))
        repeated = 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
        total += options.length_weight * near + options.repetition_weight * repeated
        # The rest is worked out only where it counts: a reward is asked for thousands of times.
        if options.loop_weight:
            total += options.loop_weight * repeats(text)
        if options.refusal_weight:
            total += options.refusal_weight * REFUSES[grade(text)]
        if options.bare_refusal_weight:
            total += options.bare_refusal_weight * bare_refusal(text)
        if options.emoji_weight:
            total += options.emoji_weight * too_many_emoji(text)
        return float(total)

    def _found(self, number: int, text: str) -> bool:
        try:
            return self._patterns[number].search(text, timeout=SECONDS) is not None
        except TimeoutError:
            raise UserError(
                f"the expression {self.options.patterns[number].regex!r} took more than {SECONDS:g} s on an answer of "
                f"{len(text)} characters",
                where=f"reward_model.patterns[{number}]",
                hint="avoid repetition inside repetition, such as (a+)+",
            ) from None


def question(statement: str) -> str:
    """The request for a yes or no."""
    return f"A statement about this response: {statement}\n\nIs the statement true? Answer yes or no and nothing else."
