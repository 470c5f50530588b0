"""``direct``: revision without a critique, the comparison of the paper's Figure 7 (section 3.5)."""

from __future__ import annotations

from cai_core.types.principles import Constitution, Principle
from cai_core.types.records import Conversation, Message, ModelInput
from cai_plugins.critiques.chat import ChatTemplate, revision_turns
from cai_plugins.critiques.paper import STOP, PaperTemplate, turns
from cai_plugins.critiques.plugin import ChatOptions, DirectOptions
from cai_plugins.critiques.shots import few_shots


class DirectChatTemplate(ChatTemplate):
    """Turns of a chat model; the critique is empty."""

    critiques = False

    def __init__(self, options: DirectOptions, constitution: Constitution) -> None:
        chat = ChatOptions(shots=options.shots, whole_sentences=options.whole_sentences)
        super().__init__(chat, constitution)

    def revision(self, prompt: Conversation, response: str, critique: str, principle: Principle) -> ModelInput:
        """The request alone, in the examples too."""
        messages: list[Message] = []
        for shot in self.shots:
            messages += revision_turns(shot.prompt, shot.response, "", shot.revision_request)
            messages += [Message("assistant", shot.revision)]
        return ModelInput(messages=(*messages, *revision_turns(prompt, response, critique, principle.revision)))


class DirectPaperTemplate(PaperTemplate):
    """Raw text without ``CritiqueRequest`` and ``Critique``."""

    critiques = False

    def __init__(self, options: DirectOptions, constitution: Constitution) -> None:
        super().__init__(options, constitution)
        self.block = "".join(
            turns(s.prompt, s.response)
            + f"\n\nRevisionRequest: {s.revision_request}\n\nRevision: {s.revision}"
            for s in few_shots(constitution, options.shots)
        )

    def revision(self, prompt: Conversation, response: str, critique: str, principle: Principle) -> ModelInput:
        """Ends on ``Revision:``."""
        return ModelInput(
            text=f"{self.block}{turns(prompt, response)}\n\nRevisionRequest: {principle.revision}\n\nRevision:",
            stop=STOP,
        )
