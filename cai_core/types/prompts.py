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
    """Loads prompts. The same options and files give the same prompts in the same order."""

    def load(self) -> Sequence[Prompt]:
        """All prompts, at least one. Raises ``UserError`` naming file and line on bad data."""
        ...
