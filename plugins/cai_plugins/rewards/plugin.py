"""Reward models: ``preference`` (learnt from soft labels) and ``rules`` (written down)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cai_core.hookspecs import hookimpl
from cai_core.types.component import EXECUTION, Component
from cai_core.types.context import StageContext
from cai_core.types.reward import RewardModel
from cai_plugins._torch.options import TrainingOptions


class PreferenceOptions(TrainingOptions):
    """A preference model on soft labels, mixed with helpfulness comparisons (sections 4.1 and 4.2 of the paper)."""

    epochs: int = Field(1, ge=1, description="passes over the comparisons (Bai et al. 2022a: 1)")
    # Our choice for adapters on a small model; the source trains all weights at 0.01 of the pretraining rate.
    learning_rate: float = Field(5e-4, ge=0, description="AdamW's learning rate")
    batch_size: int = Field(8, ge=1, description="comparisons per optimizer step")
    # Bai et al. 2022a: context 1024.
    max_length: int = Field(
        1024, ge=16, description="tokens per conversation with answer; longer ones lose their earliest exchanges"
    )
    layers: int | None = Field(
        None,
        ge=0,
        description="train the last so many layers and the score head, which costs less; 0: the head alone; null: all",
    )
    helpful: Literal["builtin", "none"] | Path = Field(
        "builtin",
        description="helpfulness comparisons to add, so that refusing everything is not the best answer; or a file: "
        "JSON lines with prompt, chosen, rejected",
    )
    helpful_pairs: int | None = Field(
        None,
        ge=0,
        description="how many to add; null is the paper's proportion, 135,296 to 182,831, as far as there are any",
    )
    balance: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = Field(
        None,
        description="source -> its part of the loss, such as {ai: 1, helpful: 1}; null goes by count and weight",
    )
    # 0 as in the paper. TRL's documentation recommends 0.01 where centering is wanted.
    centering: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="times the squared sum of a pair's scores is added to the loss, so that scores centre on 0",
    )
    # Our choice: the paper holds none out at this step; without it nothing is known of unseen comparisons.
    heldout: float = Field(
        0.1, ge=0, lt=1, description="share of opening turns, chosen by hash, whose comparisons only measure"
    )
    save_steps: int = Field(200, ge=1, description="optimizer steps between checkpoints", json_schema_extra=EXECUTION)
    token_budget: int = Field(
        16384, ge=1, description="padded tokens per batch when scoring", json_schema_extra=EXECUTION
    )


class Pattern(BaseModel):
    """One regular expression and what each answer that it matches gains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    regex: str = Field(description="Python regular expression, searched in the answer without regard to case")
    weight: float = Field(allow_inf_nan=False, description="added when it is found; negative to punish")

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class RulesOptions(BaseModel):
    """A sum of simple checks. It learns nothing and costs nothing: a baseline, and a reward for tests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patterns: tuple[Pattern, ...] = Field((), description="expressions that gain or cost")
    length_weight: float = Field(
        0.0, allow_inf_nan=False, description="times how near the answer's length is to target_words: 1 at it, 0 at 0"
    )
    target_words: int = Field(40, ge=1, description="the length that length_weight rewards")
    repetition_weight: float = Field(
        0.0, allow_inf_nan=False, description="times the share of word pairs that occurred before; negative to punish"
    )


def make_preference(options: PreferenceOptions, context: StageContext) -> RewardModel:
    """``preference``; see ``preference.py``."""
    from cai_plugins.rewards.preference import PreferenceModel

    return PreferenceModel(options, context)


def make_rules(options: RulesOptions, context: StageContext) -> RewardModel:
    """``rules``; see ``rules.py``."""
    from cai_plugins.rewards.rules import Rules

    return Rules(options)


@hookimpl
def cai_register_reward_models() -> Iterable[Component[RewardModel]]:
    """The reward models that come with cai-core."""
    yield Component(
        "preference",
        PreferenceOptions,
        make_preference,
        "preference model on soft labels and helpfulness comparisons",
        revision=2,
    )
    yield Component("rules", RulesOptions, make_rules, "weighted checks of length, expressions and repetition")
