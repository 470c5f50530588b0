"""What this package offers. The module is imported whenever components are listed, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from cai_core.hookspecs import hookimpl
from cai_core.types.component import Component
from cai_core.types.context import StageContext
from cai_core.types.labeler import Labeler
from cai_core.types.rl import RLAlgorithm
from pydantic import BaseModel, ConfigDict, Field

CAI_HOOKSPEC_VERSION = 1


class OrdinalOptions(BaseModel):
    """How the question is put."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: str = Field("first", min_length=1, description="the judge's word for the response that is shown first")
    second: str = Field("second", min_length=1, description="and for the other one")


class AboveMeanOptions(BaseModel):
    """How much is sampled. How it is trained is set at the trainer of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(8, ge=2, description="samples per prompt")
    max_new_tokens: int = Field(128, ge=1, description="tokens per sample at most")
    temperature: float = Field(1.0, gt=0, description="of sampling")


def make_ordinal(options: OrdinalOptions, context: StageContext) -> Labeler:
    """Asks the model in the role ``judge``."""
    from cai_extras.ordinal import Ordinal

    return Ordinal(options, context)


def make_above_mean(options: AboveMeanOptions, context: StageContext) -> RLAlgorithm:
    """Samples from the model in the role ``policy`` and hands the good ones to the recipe's trainer."""
    from cai_extras.above_mean import AboveMean

    return AboveMean(options, context)


@hookimpl
def cai_register_labelers() -> Iterable[Component[Labeler]]:
    """One labeler."""
    yield Component(
        "ordinal",
        OrdinalOptions,
        make_ordinal,
        'log-probabilities of "first" and "second", both orders',
        roles=("judge",),
    )


@hookimpl
def cai_register_rl_algorithms() -> Iterable[Component[RLAlgorithm]]:
    """One RL algorithm; it asks for a trainer instead of training by itself."""
    yield Component(
        "above_mean",
        AboveMeanOptions,
        make_above_mean,
        "fine-tunes on the samples that beat the mean of their prompt",
        needs=("trainer",),
    )
