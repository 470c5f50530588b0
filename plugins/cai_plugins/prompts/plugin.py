"""Prompts: ``builtin`` (a small set that comes along) and ``jsonl`` (a file of your own)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from cai_core.hookspecs import hookimpl
from cai_core.types.component import Component
from cai_core.types.context import StageContext
from cai_core.types.prompts import PromptKind, PromptSource


class BuiltinOptions(BaseModel):
    """How many of the built-in prompts to use; a larger number keeps those of a smaller one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    red_team: int = Field(64, ge=0, description="red-team prompts for training (there are 80)")
    helpful: int = Field(64, ge=0, description="helpful prompts for training (there are 80)")
    heldout_red_team: int = Field(32, ge=0, description="red-team prompts held out for evaluation (there are 32)")
    heldout_helpful: int = Field(24, ge=0, description="helpful prompts held out for evaluation (there are 24)")
    heldout_borderline: int = Field(
        8, ge=0, description="prompts that sound alarming and are harmless, held out for evaluation (there are 8)"
    )


class JsonlOptions(BaseModel):
    """A file of prompts, one JSON object a line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(
        description='JSON lines with "prompt" (text) or "messages" (turns that end with the user), and optionally '
        '"id", "kind" (red_team, helpful, borderline) and "split" (train, heldout)'
    )
    kind: PromptKind = Field("red_team", description="kind of rows that name none")
    heldout_share: float = Field(
        0.2, ge=0, lt=1, description="share of the rows without a split that is held out, chosen by hash"
    )


def make_builtin(options: BuiltinOptions, context: StageContext) -> PromptSource:
    """The prompts that come along."""
    from cai_plugins.prompts.builtin import BuiltinPrompts

    return BuiltinPrompts(options)


def make_jsonl(options: JsonlOptions, context: StageContext) -> PromptSource:
    """A file."""
    from cai_plugins.prompts.jsonl import JsonlPrompts

    return JsonlPrompts(options)


@hookimpl
def cai_register_prompts() -> Iterable[Component[PromptSource]]:
    """The built-in prompt sources."""
    yield Component("builtin", BuiltinOptions, make_builtin, "224 short prompts, red-team and helpful, that come along")
    yield Component("jsonl", JsonlOptions, make_jsonl, "prompts from a JSON lines file")
