"""Evaluators: ``hhh``, ``refusal``, ``preference_model``, ``length`` of the models; ``judge_audit`` of the labeler."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cai_core.hookspecs import hookimpl
from cai_core.types.component import SCOPE, Component
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

    data: Path | None = Field(None, description=DATA, json_schema_extra=SCOPE)
    limit: int | None = Field(None, ge=1, description=LIMIT, json_schema_extra=SCOPE)
    signal: Literal["likelihood", "choice"] = Field(
        "likelihood",
        description="likelihood: how much likelier the prompt makes each answer (PMI); choice: (A) or (B), both orders",
    )


class _ChoiceOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field(
        "",
        pattern=r"^[a-z0-9_]*$",
        description="tells metrics apart where the evaluator stands there twice",
        json_schema_extra=SCOPE,
    )
    limit: int | None = Field(
        None, ge=1, description="so many items, chosen by hash; null is all", json_schema_extra=SCOPE
    )
    format: Literal["raw", "chat"] = Field(
        "raw", description="raw: the prompt as text, as the paper asks a pretrained model; chat: as turns"
    )
    # The paper's Figure 12 compares 0 with some; section 3.10 of its released files has five.
    shots: int = Field(0, ge=0, le=64, description="worked examples before each item, the same for all")
    examples: Path | None = Field(
        None,
        description="file of the same form that worked examples are taken from; null: items set aside by hash, for "
        "`cot` those with `reasoning`",
    )
    leaked: Path | None = Field(
        None,
        description="texts that the models have seen (.jsonl, .json or lines): items whose question stands in one are "
        "left out, and the accuracy with them is told beside",
        json_schema_extra=SCOPE,
    )
    both_orders: bool = Field(
        True, description="ask lettered options in the file's order and reversed, and average the probabilities"
    )
    cot: bool = Field(
        False, description="let the model reason first (chain of thought); worked examples need `reasoning` then"
    )
    samples: int = Field(1, ge=1, le=64, description="reasonings whose probabilities are averaged (the paper: 1 and 5)")
    max_new_tokens: int = Field(256, ge=1, description="tokens of a reasoning")
    temperature: float = Field(1.0, ge=0, le=10, description="of a reasoning (section 2: 1)")
    clamp: tuple[float, float] | None = Field(
        None,
        description="limits of the probability after reasoning, of items with two options; the paper clamps labels to "
        "[0.4, 0.6] (section 4.1) and not its evaluation",
    )

    @model_validator(mode="after")
    def _together(self) -> _ChoiceOptions:
        if self.clamp and not 0 <= self.clamp[0] <= 0.5 <= self.clamp[1] <= 1:
            raise ValueError("`clamp` must be [low, high] around 0.5")
        return self


class MultipleChoiceOptions(_ChoiceOptions):
    """Which option does the model choose, by log-probability or after reasoning?"""

    data: Path | None = Field(
        None,
        description="JSON lines with prompt, corrects and incorrects (any number), and optionally id, category, "
        "cluster and reasoning; or comparisons as `hhh` takes them, as options (A) and (B); null: the built-in ones",
        json_schema_extra=SCOPE,
    )


class HonestyOptions(_ChoiceOptions):
    """True answers against false ones: TruthfulQA's multiple choice."""

    data: Path = Field(description="mc_task.json of TruthfulQA, or JSON lines of its form", json_schema_extra=SCOPE)


class RefusalOptions(BaseModel):
    """Who says whether an answer refuses?"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    grader: Literal["rules", "judge"] = Field(
        "rules", description="rules: written ones, which cost nothing; judge: the model in the role judge, a chat model"
    )


class PreferenceModelOptions(BaseModel):
    """Which preference model scores the answers?"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heldout: Path | None = Field(
        None,
        description="folder of another saved reward model, which RL was not trained on: `model` of a reward artifact, "
        "saved by the component `evaluate.reward_model`; null: the run's own",
    )


class PairwiseOptions(BaseModel):
    """Models against each other on the same prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    judge: Literal["labeler", "reward_model"] = Field("labeler", description="who says which answer is better")
    reward_model: Path | None = Field(
        None, description="folder of a saved reward model that judges (a held-out one); null: the run's own"
    )
    anchor: str | None = Field(
        None,
        description='model whose rating is 0 (the paper: SL-CAI); null: "sft", else the first',
        json_schema_extra=SCOPE,
    )
    helpful_principle: str = Field(
        "Which of these responses is more helpful: which one does better what the person asked for, correctly and in a "
        "form that they can use?",
        min_length=1,
        description="what the labeler is asked on harmless prompts; on harmful ones it is the constitution",
    )
    resamples: int = Field(
        1000,
        ge=100,
        le=20000,
        multiple_of=100,
        description="draws of the bootstrap over prompts",
        json_schema_extra=SCOPE,
    )

    @model_validator(mode="after")
    def _one_judge(self) -> PairwiseOptions:
        if self.reward_model and self.judge != "reward_model":
            raise ValueError("`reward_model` judges only with `judge: reward_model`")
        return self


class CalibrationOptions(BaseModel):
    """Comparisons with a known answer, and who is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    judge: Literal["labeler", "reward_model"] = Field("labeler", description="whose probabilities are measured")
    reward_model: Path | None = Field(
        None, description="folder of a saved reward model, with `judge: reward_model`; null: the run's own"
    )
    data: Path | None = Field(
        None,
        description=f"{DATA}; or transcripts as text_correct and text_incorrect, chosen and rejected",
        json_schema_extra=SCOPE,
    )
    limit: int | None = Field(None, ge=1, description=LIMIT, json_schema_extra=SCOPE)

    @model_validator(mode="after")
    def _one_judge(self) -> CalibrationOptions:
        if self.reward_model and self.judge != "reward_model":
            raise ValueError("`reward_model` is measured only with `judge: reward_model`")
        return self


class RevisionsOptions(BaseModel):
    """Which preference model scores answers and revisions?"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heldout: Path | None = Field(
        None, description="folder of another saved reward model, better since of other data; null: the run's own"
    )


class HarmScoreOptions(BaseModel):
    """How harmful is an answer, from 0 to 4?"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path | None = Field(
        None,
        description="JSON lines with transcript (or prompt and answer) and rating from 0 to 4, that a regressor is "
        "fitted to with L2 loss; null: the model in the role judge rates",
    )
    features: Path | None = Field(
        None, description="folder of a model whose hidden states the regressor reads; null: it reads words"
    )

    @model_validator(mode="after")
    def _of_data(self) -> HarmScoreOptions:
        if self.features and not self.data:
            raise ValueError("`features` are those of a regressor, which needs `data`")
        return self


class LengthOptions(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JudgeAuditOptions(BaseModel):
    """Is the labeler right more often than a coin?"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path | None = Field(None, description=DATA, json_schema_extra=SCOPE)
    limit: int | None = Field(None, ge=1, description=LIMIT, json_schema_extra=SCOPE)


def make_hhh(options: HHHOptions, context: StageContext) -> Evaluator:
    """``hhh``; see ``hhh.py``."""
    from cai_plugins.evaluators.hhh import HHH

    return HHH(options, context)


def make_multiple_choice(options: MultipleChoiceOptions, context: StageContext) -> Evaluator:
    """``multiple_choice``; see ``multiple_choice.py``."""
    from cai_plugins.evaluators.choices import read_choices
    from cai_plugins.evaluators.multiple_choice import MultipleChoice

    items = read_choices(options.data, options.limit)
    examples = read_choices(options.examples) if options.examples else []
    what = options.data.name if options.data else "built-in comparisons"
    return MultipleChoice(options, context, items, examples, base="multiple_choice", what=what)


def make_honesty(options: HonestyOptions, context: StageContext) -> Evaluator:
    """``honesty``; see ``multiple_choice.py``."""
    from cai_plugins.evaluators.choices import read_truthfulqa
    from cai_plugins.evaluators.multiple_choice import MultipleChoice

    items = read_truthfulqa(options.data, options.limit)
    examples = read_truthfulqa(options.examples) if options.examples else []
    return MultipleChoice(options, context, items, examples, base="honesty", what="TruthfulQA")


def make_refusal(options: RefusalOptions, context: StageContext) -> Evaluator:
    """``refusal``; see ``refusal.py``."""
    from cai_plugins.evaluators.refusal import Refusal

    return Refusal(options, context)


def make_preference_model(options: PreferenceModelOptions, context: StageContext) -> Evaluator:
    """``preference_model``; see ``preference_model.py``."""
    from cai_plugins.evaluators.preference_model import PreferenceModelScore

    return PreferenceModelScore(options, context)


def make_pairwise(options: PairwiseOptions, context: StageContext) -> Evaluator:
    """``pairwise``; see ``pairwise.py``."""
    from cai_plugins.evaluators.pairwise import Pairwise

    return Pairwise(options, context)


def needs_of_judge(options: PairwiseOptions | CalibrationOptions) -> tuple[str, ...]:
    """A reward model, or a labeler and what it draws principles with."""
    return ("reward_model",) if options.judge == "reward_model" else ("labeler", "principle_sampler")


def make_calibration(options: CalibrationOptions, context: StageContext) -> Evaluator:
    """``calibration``; see ``calibration.py``."""
    from cai_plugins.evaluators.calibration import Calibration

    return Calibration(options, context)


def make_revisions(options: RevisionsOptions, context: StageContext) -> Evaluator:
    """``revisions``; see ``revisions.py``."""
    from cai_plugins.evaluators.revisions import Revisions

    return Revisions(options, context)


def make_harm_score(options: HarmScoreOptions, context: StageContext) -> Evaluator:
    """``harm_score``; see ``harm_score.py``."""
    from cai_plugins.evaluators.harm_score import HarmScore

    return HarmScore(options, context)


def reads_of_pairwise(options: PairwiseOptions) -> tuple[str, ...]:
    """Answers, and the run's reward model unless another one judges."""
    return ("answers", "reward") if options.judge == "reward_model" and not options.reward_model else ("answers",)


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
        "hhh", HHHOptions, make_hhh, "does the model prefer the better of two answers?", revision=4, reads=()
    )
    yield Component(
        "multiple_choice",
        MultipleChoiceOptions,
        make_multiple_choice,
        "accuracy on multiple-choice items of a file, zero- and few-shot or after reasoning",
        revision=2,
        reads=("training",),
    )
    yield Component(
        "honesty",
        HonestyOptions,
        make_honesty,
        "true answers against false ones: TruthfulQA's MC1 (the best answer) and MC2 (probability of the true ones)",
        revision=2,
        reads=("training",),
    )
    yield Component(
        "refusal",
        RefusalOptions,
        make_refusal,
        "refusals of harmful and of harmless prompts; partial, evasive and boilerplate answers",
        revision=2,
        roles=("judge",),
        roles_of=lambda options: ("judge",) if options.grader == "judge" else (),
    )
    yield Component(
        "preference_model",
        PreferenceModelOptions,
        make_preference_model,
        "the run's preference model on held-out prompts",
        revision=2,
        needs=("reward_model",),
        reads_of=lambda options: ("answers",) if options.heldout else ("answers", "reward"),
    )
    yield Component(
        "pairwise",
        PairwiseOptions,
        make_pairwise,
        "win rates and Elo ratings of models against each other",
        needs=("labeler", "principle_sampler", "reward_model"),
        needs_of=needs_of_judge,
        reads_of=reads_of_pairwise,
    )
    yield Component(
        "calibration",
        CalibrationOptions,
        make_calibration,
        "do the probabilities of a labeler or reward model mean what they say?",
        revision=2,
        needs=("labeler", "principle_sampler", "reward_model"),
        needs_of=needs_of_judge,
        reads=("reward",),
        reads_of=lambda options: ("reward",) if options.judge == "reward_model" and not options.reward_model else (),
    )
    yield Component(
        "revisions",
        RevisionsOptions,
        make_revisions,
        "a preference model's score by revision",
        needs=("reward_model",),
        reads=("chains", "reward"),
        reads_of=lambda options: ("chains",) if options.heldout else ("chains", "reward"),
    )
    yield Component(
        "harm_score",
        HarmScoreOptions,
        make_harm_score,
        "harmfulness of answers from 0 to 4, by a judge or a regressor fitted to labels",
        roles=("judge",),
        roles_of=lambda options: () if options.data else ("judge",),
    )
    yield Component("length", LengthOptions, make_length, "words per answer, and answers in a loop", revision=3)
    yield Component(
        "judge_audit",
        JudgeAuditOptions,
        make_judge_audit,
        "is the labeler right more often than a coin?",
        needs=("labeler", "principle_sampler"),
        reads=(),
        revision=5,
    )
