"""A reward that is written down instead of learnt (in the spirit of rule-based rewards, without a grader model)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from cai_core.errors import UserError
from cai_core.types.reward import Exchange, Preference
from cai_core.types.trainer import TrainResult
from cai_plugins.rewards.plugin import RulesOptions

FILE = "rules.json"


class Rules:
    """See ``RewardModel``. ``fit`` writes the options down and learns nothing; ``load`` takes what is written."""

    def __init__(self, options: RulesOptions) -> None:
        self._use(options)

    def _use(self, options: RulesOptions) -> None:
        self.options = options
        self._patterns = [(re.compile(p.regex, re.IGNORECASE), p.weight) for p in options.patterns]

    def fit(self, model: Path, preferences: Sequence[Preference], out: Path) -> TrainResult:
        """Write ``rules.json``; report how often the rules agree with the labels."""
        out.mkdir(parents=True, exist_ok=True)
        (out / FILE).write_text(self.options.model_dump_json(indent=2), encoding="utf-8")
        sides = [p for p in preferences if p.p_a != 0.5]
        margins = [self._score(p.response_a) - self._score(p.response_b) for p in sides]
        right = sum(
            0.5 if margin == 0 else float((margin > 0) == (p.p_a > 0.5))
            for p, margin in zip(sides, margins, strict=True)
        )
        metrics = {"agreement_n": float(len(sides))}
        if sides:
            metrics["agreement"] = right / len(sides)
        return TrainResult(metrics=metrics, notes=["rules: nothing was trained"])

    def load(self, path: Path) -> None:
        """Use the rules written in ``path``."""
        try:
            self._use(RulesOptions.model_validate_json((path / FILE).read_text(encoding="utf-8")))
        except (OSError, ValidationError) as error:
            raise UserError(f"not the rules of a reward model: {error}", where=str(path / FILE)) from error

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """See ``RewardModel``; the prompt is not looked at."""
        return [self._score(exchange.response) for exchange in exchanges]

    def _score(self, text: str) -> float:
        options, words = self.options, text.lower().split()
        total = sum(weight for pattern, weight in self._patterns if pattern.search(text))
        near = max(0.0, 1 - abs(len(words) - options.target_words) / options.target_words)
        pairs = list(pairwise(words))
        repeated = 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
        return float(total + options.length_weight * near + options.repetition_weight * repeated)
