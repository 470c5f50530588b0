"""Evaluators: ``hhh``, ``refusal``, ``preference_model``, ``length`` of the models; ``judge_audit`` of the labeler."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cai_core.hookspecs import hookimpl
from cai_core.types.component import Component
from cai_core.types.context import StageContext
from cai_core.types.evaluator import Evaluator

DATA = (
    "JSON lines with prompt, better and worse (or chosen and rejected; or the paper's prompt, corrects and incorrects) "
    "and optionally id and category; null is the built-in set of 80"
)
LIMIT = "so many items, categories taking turns; those of a file of yours by hash; null is all"


class HHHOptions(BaseModel):
    """Which of two answers does the model prefer?"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path | None = Field(None, description=DATA)
    limit: int | None = Field(None, ge=1, description=LIMIT)
    signal: Literal["likelihood", "choice"] = Field(
        "likelihood",
        description="likelihood: how much likelier the prompt makes each answer (PMI); choice: (A) or (B), both orders",
    )


class RefusalOptions(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PreferenceModelOptions(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LengthOptions(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JudgeAuditOptions(BaseModel):
    """Is the labeler right more often than a coin?"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path | None = Field(None, description=DATA)
    limit: int | None = Field(None, ge=1, description=LIMIT)


def make_hhh(options: HHHOptions, context: StageContext) -> Evaluator:
    """``hhh``; see ``hhh.py``."""
    from cai_plugins.evaluators.hhh import HHH

    return HHH(options, context)


def make_refusal(options: RefusalOptions, context: StageContext) -> Evaluator:
    """``refusal``; see ``refusal.py``."""
    from cai_plugins.evaluators.refusal import Refusal

    return Refusal()


def make_preference_model(options: PreferenceModelOptions, context: StageContext) -> Evaluator:
    """``preference_model``; see ``preference_model.py``."""
    from cai_plugins.evaluators.preference_model import PreferenceModelScore

    return PreferenceModelScore(context)


def make_length(options: LengthOptions, context: StageContext) -> Evaluator:
    """``length``; see ``length.py``."""
    from cai_plugins.evaluators.length import Length

    return Length()


def make_judge_audit(options: JudgeAuditOptions, context: StageContext) -> Evaluator:
    """``judge_audit``; see ``judge_audit.py``."""
    from cai_plugins.evaluators.judge_audit import JudgeAudit

    return JudgeAudit(options.data, options.limit, context)


@hookimpl
def cai_register_evaluators() -> Iterable[Component[Evaluator]]:
    """The evaluators that come with cai-core."""
    yield Component(
        "hhh", HHHOptions, make_hhh, "does the model prefer the better of two answers?", revision=3, reads=()
    )
    yield Component("refusal", RefusalOptions, make_refusal, "refusals of harmful and of harmless prompts")
    yield Component(
        "preference_model",
        PreferenceModelOptions,
        make_preference_model,
        "the run's preference model on held-out prompts",
        needs=("reward_model",),
    )
    yield Component("length", LengthOptions, make_length, "words per answer")
    yield Component(
        "judge_audit",
        JudgeAuditOptions,
        make_judge_audit,
        "is the labeler right more often than a coin?",
        needs=("labeler", "principle_sampler"),
        reads=(),
        revision=2,
    )
