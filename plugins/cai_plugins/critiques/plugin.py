"""Critique templates: ``chat`` (turns, for chat models), ``paper`` (raw text), ``direct`` (no critique)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cai_core.hookspecs import hookimpl
from cai_core.types.component import Component
from cai_core.types.context import StageContext
from cai_core.types.critique import CritiqueTemplate

SHOTS = "worked examples before each request: the constitution's, or five of ours; null: all there are"
WHOLE = "drop a last sentence that the token limit cut off, where a whole one comes before it"


class ChatOptions(BaseModel):
    """The model's own chat template; works with any chat model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Our choice. A model of 135M copies the examples instead of following them; from about a billion parameters they
    # help, and the paper has five.
    shots: int | None = Field(0, ge=0, description=SHOTS)
    # Our choice: without it small models answer the person again instead of speaking about the answer.
    critique_prefill: str = Field(
        "The problem with the response is that",
        description="how every critique begins, written for the model; it is part of the critique",
    )
    whole_sentences: bool = Field(True, description=WHOLE)


class PaperOptions(BaseModel):
    """Raw text with the tags of the paper's published prompts; for pretrained models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The paper prepends examples against confusion of viewpoint (section 3.1); its authors published five.
    shots: int | None = Field(None, ge=0, description=SHOTS)
    whole_sentences: bool = Field(True, description=WHOLE)


class DirectOptions(BaseModel):
    """Revision without a critique (the paper's Figure 7)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["chat", "paper"] = Field("chat", description="turns of the chat template, or raw text with tags")
    shots: int | None = Field(0, ge=0, description=SHOTS)
    whole_sentences: bool = Field(True, description=WHOLE)


def make_chat(options: ChatOptions, context: StageContext) -> CritiqueTemplate:
    """``chat``; see ``chat.py``."""
    from cai_plugins.critiques.chat import ChatTemplate

    return ChatTemplate(options, context.constitution)


def make_paper(options: PaperOptions, context: StageContext) -> CritiqueTemplate:
    """``paper``; see ``paper.py``."""
    from cai_plugins.critiques.paper import PaperTemplate

    return PaperTemplate(options, context.constitution)


def make_direct(options: DirectOptions, context: StageContext) -> CritiqueTemplate:
    """``direct``; see ``direct.py``."""
    from cai_plugins.critiques.direct import DirectChatTemplate, DirectPaperTemplate

    template = DirectChatTemplate if options.format == "chat" else DirectPaperTemplate
    return template(options, context.constitution)


@hookimpl
def cai_register_critique_templates() -> Iterable[Component[CritiqueTemplate]]:
    """The critique templates that come with cai-core."""
    yield Component("chat", ChatOptions, make_chat, "critique and revision as turns of any chat model", revision=5)
    yield Component(
        "paper", PaperOptions, make_paper, "CritiqueRequest / RevisionRequest as raw text, with examples", revision=5
    )
    yield Component("direct", DirectOptions, make_direct, "revision without a critique", revision=4)
