"""The prompts of critique and revision, and reading the model's text back."""

from __future__ import annotations

from typing import Protocol

from cai_core.types.principles import Principle
from cai_core.types.records import Conversation, ModelInput


class CritiqueTemplate(Protocol):
    """One round is critique then revision (section 3.1); ``critiques`` is False for direct revision (Figure 7).

    Order: answer, then per round critique and revision; each sees the latest response only.
    Shapes and units: one ``ModelInput`` per call, chat turns or raw text; text of users and models goes in as it is,
    whatever braces or tags it holds.
    Ownership: nothing is kept between calls.
    Errors: the builders raise none. The readers return text that is not blank or raise ``UnitError`` ("unparseable", or
    "refusal"), which the pipeline stores as a typed row. ``cut``: the token limit ended the text, not the model.
    Determinism: builders and readers are pure functions of their arguments.
    """

    critiques: bool

    def answer(self, prompt: Conversation) -> ModelInput:
        """Input for the first answer."""
        ...

    def critique(self, prompt: Conversation, response: str, principle: Principle) -> ModelInput:
        """Input for the critique of ``response`` (the latest revision; earlier ones are not shown)."""
        ...

    def revision(self, prompt: Conversation, response: str, critique: str, principle: Principle) -> ModelInput:
        """Input for the revision. ``critique`` is empty for direct revision."""
        ...

    def read_answer(self, text: str, *, cut: bool = False) -> str:
        """The first answer from the model's text."""
        ...

    def read_critique(self, text: str, *, cut: bool = False) -> str:
        """The critique from the model's text."""
        ...

    def read_revision(self, text: str, *, cut: bool = False) -> str:
        """The revision from the model's text."""
        ...
