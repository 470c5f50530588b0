"""The prompts of critique and revision, and reading the model's text back."""

from __future__ import annotations

from typing import Protocol

from cai_core.types.principles import Principle
from cai_core.types.records import Conversation, ModelInput


class CritiqueTemplate(Protocol):
    """One round is critique then revision (section 3.1); ``critiques`` is False for direct revision (Figure 7).

    The builders are pure functions of their arguments. The readers return clean text or raise ``UnitError``
    ("unparseable"), which the pipeline stores as a typed row.
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

    def read_answer(self, text: str) -> str:
        """The first answer from the model's text."""
        ...

    def read_critique(self, text: str) -> str:
        """The critique from the model's text."""
        ...

    def read_revision(self, text: str) -> str:
        """The revision from the model's text."""
        ...
