"""Reward models: ``preference`` (learnt), ``rules`` (written down), ``judge`` (asked), ``ensemble`` (several)."""

from __future__ import annotations

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

    regex: str = Field(
        max_length=1000, description="Python regular expression, searched in the answer without regard to case"
    )
    weight: float = Field(allow_inf_nan=False, description="added when it is found; negative to punish")

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str) -> str:
        import regex

        try:
            regex.compile(value)
        except regex.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class Proposition(BaseModel):
    """One statement about the answer and what an answer of which it is surely true gains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statement: str = Field(
        min_length=1, description="a sentence that is true or false of an answer, e.g. 'It names a risk.'"
    )
    weight: float = Field(
        allow_inf_nan=False, description="times the judge's probability that it is true; negative to punish"
    )


Format = Literal["chat", "text"]
_FORMAT = "chat: turns, for an instruct model; text: raw text, for a model without a chat template"
_UNRATED = "of an answer that the judge refuses to rate or that is too long for it; null stops with an error"


class RulesOptions(BaseModel):
    """A sum of simple checks. It learns nothing and, without `propositions`, costs nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patterns: tuple[Pattern, ...] = Field((), description="expressions that gain or cost")
    length_weight: float = Field(
        0.0, allow_inf_nan=False, description="times how near the answer's length is to target_words: 1 at it, 0 at 0"
    )
    target_words: int = Field(40, ge=1, description="the length that length_weight rewards")
    repetition_weight: float = Field(
        0.0, allow_inf_nan=False, description="times the share of word pairs that occurred before; negative to punish"
    )
    loop_weight: float = Field(
        0.0, allow_inf_nan=False, description="added when the answer repeats words or sentences in a loop"
    )
    refusal_weight: float = Field(
        0.0, allow_inf_nan=False, description="added when the answer refuses; half of it when it also helps"
    )
    bare_refusal_weight: float = Field(
        0.0, allow_inf_nan=False, description="added when the answer is a refusal of at most 30 words"
    )
    emoji_weight: float = Field(
        0.0, allow_inf_nan=False, description="added at three emoji or more, if over one in ten words"
    )
    propositions: tuple[Proposition, ...] = Field(
        (), description="statements that the model in the role judge finds true or false"
    )
    format: Format = Field("chat", description=f"of the question to the judge. {_FORMAT}")
    unrated: float | None = Field(None, ge=0, le=1, description=f"probability {_UNRATED}")


class JudgeOptions(BaseModel):
    """The judge rates each answer from 1 to 10 under a principle; the reward is the mean of its distribution."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The paper draws one principle per comparison (section 4.1); here answers to one prompt are what is compared.
    principles: Literal["one", "all"] = Field(
        "one", description="one per prompt, drawn by hash, the same for all its answers; or the mean over all, which "
        "costs a question for each"
    )
    format: Format = Field("chat", description=_FORMAT)
    unrated: float | None = Field(None, ge=1, le=10, description=f"rating {_UNRATED}")
    # Our choice: the standard error of an agreement near 0.5 is then 0.06.
    measure: int = Field(
        64, ge=0, description="comparisons, chosen by hash, on which agreement with the labels is measured"
    )


class Member(BaseModel):
    """One reward model of an ensemble; whatever else it is given are that model's options. Members that are equal
    otherwise differ by their seeds."""

    model_config = ConfigDict(extra="allow", frozen=True)

    reward_model: str = Field(min_length=1, description="name of a reward model of any installed plugin")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="in the mean and the deviation")


class EnsembleOptions(BaseModel):
    """Several reward models as one. What one of them overrates, the others may not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: tuple[Member, ...] = Field(
        min_length=2, description="each {reward_model: NAME, weight: 1.0, and the options of that reward model}"
    )
    combine: Literal["mean", "minimum", "mean_minus_deviation"] = Field(
        "mean", description="mean; minimum; or mean less `deviations` times the standard deviation over the members"
    )
    # Coste et al. 2023 subtract a multiple of the variance; a standard deviation has the unit of the scores. 1 is ours.
    deviations: float = Field(1.0, ge=0, allow_inf_nan=False, description="for mean_minus_deviation")
    # Bai et al. 2022a: "absolute scores" of a preference model mean nothing, only differences do.
    standardise: bool = Field(
        True,
        description="give each member's scores mean 0 and standard deviation 1 over the answers of the comparisons; "
        "false only where all members have one scale",
    )
    # Our choice: 512 answers give a mean and a deviation to within 5 %.
    measure: int = Field(
        256, ge=1, description="comparisons, chosen by hash, for the scales, agreement and disagreement"
    )


def make_preference(options: PreferenceOptions, context: StageContext) -> RewardModel:
    """``preference``; see ``preference.py``."""
    from cai_plugins.rewards.preference import PreferenceModel

    return PreferenceModel(options, context)


def make_rules(options: RulesOptions, context: StageContext) -> RewardModel:
    """``rules``; see ``rules.py``."""
    from cai_plugins.rewards.rules import Rules

    return Rules(options, context)


def make_judge(options: JudgeOptions, context: StageContext) -> RewardModel:
    """``judge``; asks the model in the role ``judge``; see ``judge.py``."""
    from cai_plugins.rewards.judge import JudgeReward

    return JudgeReward(options, context)


def make_ensemble(options: EnsembleOptions, context: StageContext) -> RewardModel:
    """``ensemble``; see ``ensemble.py``."""
    from cai_plugins.rewards.ensemble import Ensemble

    return Ensemble(options, context)


def rules_roles(options: RulesOptions) -> tuple[str, ...]:
    """Only propositions need a judge."""
    return ("judge",) if options.propositions else ()


@hookimpl
def cai_register_reward_models() -> Iterable[Component[RewardModel]]:
    """The reward models that come with cai-core."""
    yield Component(
        "preference",
        PreferenceOptions,
        make_preference,
        "preference model on soft labels and helpfulness comparisons",
        revision=2,
        distributed=True,
    )
    yield Component(
        "rules",
        RulesOptions,
        make_rules,
        "weighted checks: length, refusal, repetition, expressions, statements put to a judge",
        revision=2,
        roles=("judge",),
        roles_of=rules_roles,
        trains=False,
    )
    yield Component(
        "judge",
        JudgeOptions,
        make_judge,
        "the judge's mean rating from 1 to 10, without training",
        roles=("judge",),
        trains=False,
    )
    yield Component(
        "ensemble",
        EnsembleOptions,
        make_ensemble,
        "mean, minimum or mean less deviation of several reward models",
        members="members",
        trains=False,
    )
