"""``chat``: one critique-revision round as turns of a chat model.

Keeps from section 3.1: a critique of the latest answer, then a revision in its light. Differs: the requests are user
turns. The critique is asked about a quoted conversation, so that the model speaks about the answer instead of
continuing to give it; the revision is asked inside the conversation, so that the model speaks to the person.
"""

from __future__ import annotations

from cai_core.errors import UnitError
from cai_core.types.principles import Constitution, Principle
from cai_core.types.records import Conversation, Message, ModelInput
from cai_plugins.critiques.plugin import ChatOptions
from cai_plugins.critiques.reading import clean, clean_critique, clean_revision, without_thoughts
from cai_plugins.critiques.shots import few_shots

SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}
BRIEFLY = "Answer in two sentences."
AGAIN = "My question was:"


class ChatTemplate:
    """A ``CritiqueTemplate``."""

    critiques = True

    def __init__(self, options: ChatOptions, constitution: Constitution) -> None:
        self.options = options
        self.shots = few_shots(constitution, options.shots)

    def answer(self, prompt: Conversation) -> ModelInput:
        """The conversation as it is."""
        return ModelInput(messages=prompt)

    def critique(self, prompt: Conversation, response: str, principle: Principle) -> ModelInput:
        """The request before the quoted conversation; the critique's first words are written for the model."""
        messages: list[Message] = []
        for shot in self.shots:
            quoted = quote(shot.prompt, shot.response)
            messages += [Message("user", f"{shot.critique_request} {BRIEFLY}\n\n{quoted}")]
            messages += [Message("assistant", shot.critique)]
        messages.append(Message("user", f"{principle.critique} {BRIEFLY}\n\n{quote(prompt, response)}"))
        return ModelInput(messages=tuple(messages), prefill=self.options.critique_prefill)

    def revision(self, prompt: Conversation, response: str, critique: str, principle: Principle) -> ModelInput:
        """The conversation with the answer, then critique and request as the user's next turn."""
        messages: list[Message] = []
        for shot in self.shots:
            messages += revision_turns(shot.prompt, shot.response, shot.critique, shot.revision_request)
            messages += [Message("assistant", shot.revision)]
        messages += revision_turns(prompt, response, critique, principle.revision)
        return ModelInput(messages=tuple(messages))

    def read_answer(self, text: str, *, cut: bool = False) -> str:
        """Without what a model writes after the end of its turn."""
        return clean(text, unfinished=cut and self.options.whole_sentences)

    def read_critique(self, text: str, *, cut: bool = False) -> str:
        """With the words that were written for the model."""
        text = without_thoughts(text)
        if not text.strip():
            raise UnitError("unparseable", "the critique is empty")
        prefill = self.options.critique_prefill
        gap = "" if not prefill or text[:1].isspace() else " "
        return clean_critique(prefill + gap + text, unfinished=cut and self.options.whole_sentences)

    def read_revision(self, text: str, *, cut: bool = False) -> str:
        """Without labels, remarks about the revision and quotation marks."""
        return clean_revision(text, unfinished=cut and self.options.whole_sentences)


def quote(prompt: Conversation, response: str) -> str:
    """A conversation as text."""
    turns = [*prompt, Message("assistant", response)]
    return "\n\n".join(f"{SPEAKERS[turn.role]}: {turn.content}" for turn in turns)


def revision_turns(prompt: Conversation, response: str, critique: str, request: str) -> list[Message]:
    """The conversation, the answer, and the request to revise it."""
    # The question once more: without it a small model is prone to answer the critique instead of the person.
    asked = " ".join(part for part in (critique, request) if part)
    return [*prompt, Message("assistant", response), Message("user", f"{asked}\n\n{AGAIN} {prompt[-1].content}")]
