"""Labelers: the paper's multiple choice (``logprob``, ``cot``), verdicts in words, people, and several of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cai_core.hookspecs import hookimpl
from cai_core.types.component import Component
from cai_core.types.context import StageContext
from cai_core.types.labeler import Labeler


class LogprobOptions(BaseModel):
    """The judge reads both answers as options (A) and (B); the label is the probability it gives to each letter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["paper", "chat"] = Field(
        "paper",
        description="paper: raw text, as the paper asks a pretrained model; chat: turns, for an instruct model",
    )
    # The paper prepends five examples (section 4.1; five are published with it).
    shots: int = Field(
        5, ge=0, description="worked examples before the comparison: the constitution's, or up to 6 of ours"
    )
    # The paper draws each example's principle anew per comparison, and leaves the rest of the prompt the same. Then no
    # two prompts begin alike and the examples, most of the tokens, are read again for every comparison. Drawn once per
    # run they are read once per batch.
    shot_principles: Literal["per_run", "per_comparison"] = Field(
        "per_run",
        description="when the examples' principles and option order are drawn: once, so that their cache is shared, "
        "or for every comparison, as in the paper",
    )
    # The paper does not swap; small judges prefer a position (the same one in 56 % of cases for the smallest of
    # Lee et al. 2023, appendix B), and averaging both orders removes that exactly.
    swap: bool = Field(
        True,
        description="ask in both orders and average; false asks in one order, chosen by hash, and costs half",
    )


class CotOptions(BaseModel):
    """The judge reasons before it answers; the letters are scored after its reasoning. Costs a text per order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["chat", "paper"] = Field(
        "chat", description="chat: turns, for an instruct model; paper: raw text with the released read-out"
    )
    shots: int = Field(
        0, ge=0, description="worked examples of reasoning (the constitution's few_shots.reasoning); format paper only"
    )
    # The paper samples one reasoning, and five for its Figure 4.
    samples: int = Field(1, ge=1, le=64, description="reasonings per order, whose probabilities are averaged")
    # After reasoning the probabilities are near 0 or 1; the paper clamps them to 40-60 % (section 4.1).
    clamp: tuple[float, float] | None = Field(
        (0.4, 0.6), description="limits of the label, symmetric about 0.5; null: none"
    )
    max_new_tokens: int = Field(256, ge=1, description="tokens of reasoning")  # our choice
    temperature: float = Field(1.0, ge=0, le=10, description="of the reasoning (section 2: 1)")
    top_p: float = Field(1.0, gt=0, le=1, description="of the reasoning")
    keep_characters: int = Field(
        2000, ge=0, description="characters of the first reasoning that are kept with the label"
    )

    @field_validator("clamp")
    @classmethod
    def _symmetric(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is None:
            return None
        low, high = value
        if not 0 <= low <= 0.5 <= high <= 1 or abs(low + high - 1) > 1e-9:
            raise ValueError("it must be [x, 1 - x] with x in [0, 0.5], or the label would depend on which answer is A")
        return value


class VerdictOptions(BaseModel):
    """The judge answers with a letter. Works with any chat model; each verdict is all or nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(1, ge=1, le=64, description="verdicts per order; their share is the probability")
    temperature: float = Field(0.0, ge=0, le=10, description="0: greedy; samples differ only above 0")
    max_new_tokens: int = Field(16, ge=1, description="tokens of a verdict; more for a model that thinks first")


class HumanOptions(BaseModel):
    """Labels that are there already."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(description="JSON lines: prompt, a, b, p_a; or prompt, chosen, rejected")


class Member(BaseModel):
    """One labeler of an ensemble; whatever else it is given are that labeler's options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    labeler: str = Field(min_length=1, description="name of a labeler of any installed plugin")
    role: Literal["judge", "judge_cot"] = Field("judge", description="which model of the recipe judges")


class EnsembleOptions(BaseModel):
    """The mean of several labelers. Several principles need no ensemble: `principle_sampler: all` averages them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: tuple[Member, ...] = Field(
        min_length=2, description="each {labeler: NAME, role: judge | judge_cot, and the options of that labeler}"
    )
    least: int | None = Field(
        None, ge=1, description="a comparison has a label when this many members have one; null: all"
    )

    @model_validator(mode="after")
    def _no_more_than_members(self) -> EnsembleOptions:
        if self.least is not None and self.least > len(self.members):
            raise ValueError(
                f"`least` is {self.least}, and there are {len(self.members)} members: no label could be made"
            )
        return self


def make_logprob(options: LogprobOptions, context: StageContext) -> Labeler:
    """Asks the model in the role ``judge``."""
    from cai_plugins.labelers.logprob import LogprobLabeler

    return LogprobLabeler(options, context)


def make_cot(options: CotOptions, context: StageContext) -> Labeler:
    """Asks the model in the role ``judge``."""
    from cai_plugins.labelers.cot import CotLabeler

    return CotLabeler(options, context)


def make_verdict(options: VerdictOptions, context: StageContext) -> Labeler:
    """Asks the model in the role ``judge``."""
    from cai_plugins.labelers.verdict import VerdictLabeler

    return VerdictLabeler(options, context)


def make_human(options: HumanOptions, context: StageContext) -> Labeler:
    """Asks nobody."""
    from cai_plugins.labelers.human import HumanLabeler

    return HumanLabeler(options.path)


def make_ensemble(options: EnsembleOptions, context: StageContext) -> Labeler:
    """Asks the models in the roles of its members."""
    from cai_plugins.labelers.ensemble import EnsembleLabeler

    return EnsembleLabeler(options, context)


@hookimpl
def cai_register_labelers() -> Iterable[Component[Labeler]]:
    """The built-in labelers."""
    yield Component(
        "logprob",
        LogprobOptions,
        make_logprob,
        "P(A) from the log-probabilities of (A) and (B), both orders averaged",
        roles=("judge",),
    )
    yield Component("cot", CotOptions, make_cot, "reasoning first, then P(A); clamped to [0.4, 0.6]", roles=("judge",))
    yield Component("verdict", VerdictOptions, make_verdict, "a letter in words, both orders", roles=("judge",))
    yield Component("human", HumanOptions, make_human, "labels from a file")
    yield Component("ensemble", EnsembleOptions, make_ensemble, "the mean of several labelers", members="members")
