"""Prompts: conversations that end on a user turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cai_core.types.records import Conversation

Split = Literal["train", "heldout"]
PromptKind = Literal["red_team", "helpful", "borderline"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends on a user turn.

    id: unique in its source, stable over time; every unit made from the prompt carries it.
    kind: red_team (meant to draw harm), helpful, or borderline (sounds alarming, is harmless; held-out only).
    split: prompts of ``heldout`` never reach a training stage.
    """

    id: str
    messages: Conversation
    kind: PromptKind = "red_team"
    split: Split = "train"
    source: str = ""
    tags: tuple[str, ...] = ()


class PromptSource(Protocol):
    """Loads prompts.

    A source without ``roles`` runs while a run is planned, so that bad data stops it before any work; one that asks a
    model (``roles`` of its ``Component``) is a stage of its own and keeps what it has in ``context.workdir``. What it
    left out it may say in an attribute ``notes``, a list of texts that is filled by ``load``.

    Order: that of the source; it decides the order of work and of the report, never a result.
    Shapes and units: whole conversations, each ending on a user turn that is not blank.
    Ownership: prompts are immutable; the source may keep nothing open.
    Errors: ``UserError`` naming file and line on bad data, and when there is no prompt.
    Determinism: the same options and files give the same prompts, with the same ids. A prompt's text is in one split.
    """

    def load(self) -> Sequence[Prompt]:
        """All prompts, at least one. Raises ``UserError`` naming file and line on bad data."""
        ...
