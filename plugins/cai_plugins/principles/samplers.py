"""The samplers. All randomness comes from the unit's own generator, so a draw depends on nothing but the unit."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

from cai_core.errors import UserError
from cai_core.text.transcripts import plain_text
from cai_core.text.words import Relevance
from cai_core.types.principles import Principle
from cai_core.types.prompts import Prompt


class Uniform:
    """``count`` different principles, every set equally likely; each call draws anew, as the paper's steps do."""

    def __init__(self, count: int) -> None:
        self.count = count

    def sample(
        self, principles: Sequence[Principle], *, prompt: Prompt, step: str, index: int, rng: random.Random
    ) -> tuple[Principle, ...]:
        """See ``PrincipleSampler``; all of them when there are fewer than ``count``."""
        return tuple(rng.sample(list(principles), min(self.count, len(principles))))


class Weighted:
    """``count`` different principles, drawn one after the other in proportion to their weights."""

    def __init__(self, count: int) -> None:
        self.count = count

    def sample(
        self, principles: Sequence[Principle], *, prompt: Prompt, step: str, index: int, rng: random.Random
    ) -> tuple[Principle, ...]:
        """See ``PrincipleSampler``. A principle of weight 0 is never drawn; if all are 0 it is a ``UserError``."""
        left = [principle for principle in principles if principle.weight > 0]
        if not left:
            raise UserError(
                "every principle has weight 0, so none can be drawn", hint="give a positive `weight` to at least one"
            )
        drawn = []
        while left and len(drawn) < self.count:
            (chosen,) = rng.choices(range(len(left)), weights=[principle.weight for principle in left])
            drawn.append(left.pop(chosen))
        return tuple(drawn)


class Relevant:
    """``count`` different principles, those that speak of what the prompt speaks of more likely.

    Similarity is the cosine of TF-IDF vectors of stemmed words. A principle is drawn with probability proportional to
    exp(similarity / temperature); where no word is in common all are equally likely.
    """

    def __init__(self, count: int, temperature: float) -> None:
        self.count = count
        self.temperature = temperature
        self._built: tuple[tuple[Principle, ...], Relevance] | None = None

    def sample(
        self, principles: Sequence[Principle], *, prompt: Prompt, step: str, index: int, rng: random.Random
    ) -> tuple[Principle, ...]:
        """See ``PrincipleSampler``."""
        left = list(principles)
        scores = self._relevance(tuple(principles)).scores(plain_text(prompt.messages))
        weights = [math.exp((score - max(scores)) / self.temperature) for score in scores]
        drawn: list[Principle] = []
        while left and len(drawn) < self.count:
            (chosen,) = rng.choices(range(len(left)), weights=weights)
            drawn.append(left.pop(chosen))
            # The rest may be so unlikely that all their weights round to zero.
            weights.pop(chosen)
            weights = weights if any(weights) else [1.0] * len(weights)
        return tuple(drawn)

    def _relevance(self, principles: tuple[Principle, ...]) -> Relevance:
        if self._built is None or self._built[0] != principles:
            texts = [" ".join((p.critique, p.revision, p.comparison, *p.tags)) for p in principles]
            self._built = principles, Relevance(texts)
        return self._built[1]


class RoundRobin:
    """The principles in their order, one per round, from a starting point that the prompt's id decides.

    Over the rounds of one prompt none repeats before all were used; over many prompts all are used equally often.
    """

    def sample(
        self, principles: Sequence[Principle], *, prompt: Prompt, step: str, index: int, rng: random.Random
    ) -> tuple[Principle, ...]:
        """See ``PrincipleSampler``."""
        start = int.from_bytes(hashlib.sha256(f"{step}\0{prompt.id}".encode()).digest()[:8], "big")
        return (principles[(start + index) % len(principles)],)


class All:
    """Every principle, in order. A label averages over them; a revision, which takes one, uses the first."""

    def sample(
        self, principles: Sequence[Principle], *, prompt: Prompt, step: str, index: int, rng: random.Random
    ) -> tuple[Principle, ...]:
        """See ``PrincipleSampler``. In revision the order starts at round ``index``, so that rounds differ."""
        start = index % len(principles)
        return (*principles[start:], *principles[:start])
