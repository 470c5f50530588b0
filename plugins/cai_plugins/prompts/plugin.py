"""Prompts: ``builtin`` (come along), ``jsonl``, ``hf`` and ``hh_rlhf`` (from files), ``generate`` (by a model)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

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
        0.2, ge=0, le=1, description="share of the rows without a split that is held out, chosen by hash"
    )


class HFOptions(BaseModel):
    """A data set of the Hugging Face hub, or a folder or file on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str = Field(
        min_length=1, description="id on the hub, a folder, or a .parquet, .jsonl or .csv file (relative to here)"
    )
    config: str | None = Field(None, description="configuration of the data set, where it has several")
    split: str = Field("train", description="split of the data set, not of the run")
    column: str = Field("prompt", description="column with the prompt: a text, or turns {role, content}")
    kind: PromptKind = Field("red_team", description="kind of all rows")
    kind_column: str | None = Field(None, description="column with each row's kind, instead")
    split_column: str | None = Field(None, description="column that says train or heldout for each row")
    heldout_share: float = Field(0.2, ge=0, lt=1, description="share that is held out, chosen by hash")
    limit: int | None = Field(None, ge=1, description="prompts at most")


class HHRLHFOptions(BaseModel):
    """Transcripts in the form of hh-rlhf, cut at human turns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(description="a .jsonl or .jsonl.gz file, or a folder of them, such as harmless-base")
    column: str = Field("chosen", description="column with the transcript (of a red-team file: transcript)")
    turns: Literal["last", "every"] = Field(
        "last", description="one prompt per conversation, or one per human turn (the paper, section 3.2)"
    )
    kind: PromptKind = Field("red_team", description="kind of all prompts: helpful for the helpful files")
    heldout_share: float = Field(
        0.1, ge=0, lt=1, description="share of the conversations held out, by hash of how they open"
    )
    limit: int | None = Field(None, ge=1, description="prompts at most")


class GenerateOptions(BaseModel):
    """Prompts that the model in the role ``generator`` writes after examples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    red_team: int = Field(64, ge=0, description="red-team prompts to write")
    helpful: int = Field(64, ge=0, description="helpful prompts to write")
    examples: Path | None = Field(None, description="JSON lines as for `jsonl`; null: the built-in train prompts")
    # Bai et al. 2022a gave the model about ten.
    shots: int = Field(10, ge=1, description="examples in each request, drawn anew")
    format: Literal["text", "chat"] = Field(
        "text", description="a list to go on with, for any model, or a request to a chat model"
    )
    heldout_share: float = Field(0.2, ge=0, lt=1, description="share that is held out, chosen by hash")
    max_new_tokens: int = Field(64, ge=8, description="tokens of a prompt at most")
    temperature: float = Field(1.0, gt=0, description="the paper samples at 1")
    top_p: float = Field(1.0, gt=0, le=1, description="only the likeliest tokens with this much probability")


def make_builtin(options: BuiltinOptions, context: StageContext) -> PromptSource:
    """The prompts that come along."""
    from cai_plugins.prompts.builtin import BuiltinPrompts

    return BuiltinPrompts(options)


def make_jsonl(options: JsonlOptions, context: StageContext) -> PromptSource:
    """A file."""
    from cai_plugins.prompts.jsonl import JsonlPrompts

    return JsonlPrompts(options)


def make_hf(options: HFOptions, context: StageContext) -> PromptSource:
    """A data set."""
    from cai_plugins.prompts.hf import HFPrompts

    return HFPrompts(options)


def make_hh_rlhf(options: HHRLHFOptions, context: StageContext) -> PromptSource:
    """Transcripts."""
    from cai_plugins.prompts.hh_rlhf import HHRLHFPrompts

    return HHRLHFPrompts(options)


def make_generate(options: GenerateOptions, context: StageContext) -> PromptSource:
    """A model writes them."""
    from cai_plugins.prompts.generate import GeneratedPrompts

    return GeneratedPrompts(options, context)


@hookimpl
def cai_register_prompts() -> Iterable[Component[PromptSource]]:
    """The built-in prompt sources."""
    yield Component("builtin", BuiltinOptions, make_builtin, "224 short prompts, red-team and helpful, that come along")
    yield Component("jsonl", JsonlOptions, make_jsonl, "prompts from a JSON lines file")
    yield Component("hf", HFOptions, make_hf, "a data set of the Hugging Face hub, or on disk")
    yield Component(
        "hh_rlhf",
        HHRLHFOptions,
        make_hh_rlhf,
        "hh-rlhf transcripts, cut at the last or every human turn",
        revision=2,
    )
    yield Component(
        "generate", GenerateOptions, make_generate, "a model writes them after examples", roles=("generator",)
    )
