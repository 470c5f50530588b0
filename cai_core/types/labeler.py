"""Labelers: comparisons -> the probability that A is preferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cai_core.types.principles import Principle
from cai_core.types.records import Conversation, UnitFailure

GIVEN = "given"
"""The key beside a labeler's evidence that holds what the file of the pairs says of them: ``human`` (people's
probability that A is better), ``source`` and ``weight``. A labeler whose evidence has it breaks its contract."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one conversation, and the principles to judge them by (section 4.1)."""

    id: str
    prompt: Conversation
    response_a: str
    response_b: str
    principles: tuple[Principle, ...]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Label:
    """``p_a``: probability in [0, 1] that A is preferred; None exactly when ``failure`` says why.

    evidence: what the judge was seen to do, JSON values only; the keys that reports know: ``p_a_first`` and
    ``p_a_second`` (P(A preferred) with A shown first, and shown second), ``mass`` (probability on the two options),
    ``tokens_in``. Nothing of it changes what a model learns; ``given`` is reserved for what the pairs' file says.
    """

    id: str
    p_a: float | None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    failure: UnitFailure | None = None


class Labeler(Protocol):
    """Judges comparisons.

    Order: exactly one label per comparison, in any order, as they finish; ``id`` says which.
    Shapes and units: ``p_a`` is a probability. Swapping A and B gives 1 - p_a; equal answers give 0.5 or a failure.
    Ownership: comparisons are immutable; the judge is the backend in the role "judge", which the context owns; the
    labeler's ``Component`` names it in ``roles``.
    Errors: a tie in words, a refusal or an unreadable verdict is a failure of that comparison ("unparseable",
    "refusal"), never a label; a failed request is a failure of the same kind. Nothing is raised for one comparison.
    Determinism: a label depends on its comparison (``seed`` included) and the judge alone, not on what else is judged.
    A judge that always prefers one position decides nothing.
    """

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        """One label per comparison, in any order, as they finish."""
        ...
