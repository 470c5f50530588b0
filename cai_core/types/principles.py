"""Constitutions, their principles, and how principles are drawn."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cai_core.types.prompts import Prompt
from cai_core.types.records import Conversation, conversation


@dataclass(frozen=True, slots=True)
class Principle:
    """One principle; each text without labels such as "Critique:" or " Options:", which templates add."""

    id: str
    critique: str = ""
    revision: str = ""
    comparison: str = ""
    weight: float = 1.0
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CritiqueShot:
    """A worked round of critique and revision, without labels."""

    prompt: Conversation
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str


@dataclass(frozen=True, slots=True)
class ComparisonShot:
    """A worked comparison: which answer is the better one. Labelers choose the order and the principle."""

    prompt: Conversation
    better: str
    worse: str


@dataclass(frozen=True, slots=True)
class FewShots:
    """Worked examples that a constitution brings along; where it has none, components use their own.

    reasoning: raw text of examples with chain of thought; ``{}`` is where a principle goes.
    """

    critiques: tuple[CritiqueShot, ...] = ()
    comparisons: tuple[ComparisonShot, ...] = ()
    reasoning: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Constitution:
    """A named list of principles; ``digest`` is the sha256 of its canonical content."""

    id: str
    version: str
    title: str
    principles: tuple[Principle, ...]
    licence: str = ""
    source: str = ""
    digest: str = ""
    few_shots: FewShots = FewShots()


def constitution_from(data: Mapping[str, Any]) -> Constitution:
    """The inverse of ``dataclasses.asdict``, after a passage through JSON."""
    shots = data["few_shots"]
    return Constitution(
        **{
            **data,
            "principles": tuple(Principle(**{**p, "tags": tuple(p["tags"])}) for p in data["principles"]),
            "few_shots": FewShots(
                tuple(CritiqueShot(**{**shot, "prompt": conversation(shot["prompt"])}) for shot in shots["critiques"]),
                tuple(
                    ComparisonShot(**{**shot, "prompt": conversation(shot["prompt"])}) for shot in shots["comparisons"]
                ),
                tuple(shots["reasoning"]),
            ),
        }
    )


class PrincipleSampler(Protocol):
    """Chooses the principles of one unit and step (the paper: one, uniformly, per step; section 3.1).

    Order: that of the result is kept; a critique uses the first principle, a label all of them.
    Shapes and units: a tuple of at least one of the given principles, none twice.
    Ownership: the given list and generator belong to the caller; the list is not changed.
    Errors: none is expected; the given list is never empty.
    Determinism: the draw depends on the arguments alone; all chance comes from ``rng``, none from ``random``.
    """

    def sample(
        self, principles: Sequence[Principle], *, prompt: Prompt, step: str, index: int, rng: random.Random
    ) -> tuple[Principle, ...]:
        """At least one of ``principles``. All randomness comes from ``rng``, which belongs to the unit.

        step: "critique" (rounds of critique and revision) or "comparison". index: round number from 0.
        """
        ...
