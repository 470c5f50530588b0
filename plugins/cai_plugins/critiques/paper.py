"""``paper``: critique and revision as raw text (Bai et al. 2022, section 3.1 and appendix A), for pretrained models.

The tags are those of the prompts that the authors published: ``CritiqueRequest:``, ``Critique:``, ``RevisionRequest:``,
``Revision:``. Examples come first; the text to write ends at the next tag.
"""

from __future__ import annotations

from cai_core.text.transcripts import render_transcript
from cai_core.types.principles import Constitution, Principle
from cai_core.types.records import Conversation, ModelInput
from cai_plugins.critiques.plugin import DirectOptions, PaperOptions
from cai_plugins.critiques.reading import clean, clean_critique, clean_revision
from cai_plugins.critiques.shots import few_shots

STOP = tuple(
    f"\n\n{tag}:"
    for tag in ("Human", "Assistant", "CritiqueRequest", "Critique", "RevisionRequest", "Revision")
)


class PaperTemplate:
    """A ``CritiqueTemplate``."""

    critiques = True

    def __init__(self, options: PaperOptions | DirectOptions, constitution: Constitution) -> None:
        self.options = options
        self.block = "".join(
            turns(s.prompt, s.response)
            + f"\n\nCritiqueRequest: {s.critique_request}\n\nCritique: {s.critique}"
            + f"\n\nRevisionRequest: {s.revision_request}\n\nRevision: {s.revision}"
            for s in few_shots(constitution, options.shots)
        )

    def answer(self, prompt: Conversation) -> ModelInput:
        """The conversation, ending on the assistant's tag; no examples (the paper's answers come without)."""
        return ModelInput(text=f"{turns(prompt)}\n\nAssistant:", stop=STOP)

    def critique(self, prompt: Conversation, response: str, principle: Principle) -> ModelInput:
        """Ends on ``Critique:``."""
        return ModelInput(
            text=f"{self.block}{turns(prompt, response)}\n\nCritiqueRequest: {principle.critique}\n\nCritique:",
            stop=STOP,
        )

    def revision(self, prompt: Conversation, response: str, critique: str, principle: Principle) -> ModelInput:
        """The critique's text, going on to ``Revision:``."""
        before = self.critique(prompt, response, principle).text
        return ModelInput(
            text=f"{before} {critique}\n\nRevisionRequest: {principle.revision}\n\nRevision:", stop=STOP
        )

    def read_answer(self, text: str, *, cut: bool = False) -> str:
        """Without what comes after the turn."""
        return clean(text, unfinished=cut and self.options.whole_sentences)

    def read_critique(self, text: str, *, cut: bool = False) -> str:
        """Likewise."""
        return clean_critique(text, unfinished=cut and self.options.whole_sentences)

    def read_revision(self, text: str, *, cut: bool = False) -> str:
        """Likewise, and without remarks about the revision."""
        return clean_revision(text, unfinished=cut and self.options.whole_sentences)


def turns(prompt: Conversation, response: str | None = None) -> str:
    """A conversation with the paper's tags, a blank line before each."""
    text = render_transcript(prompt)
    return text if response is None else f"{text}\n\nAssistant: {response}"
