"""Labelers: ``logprob``, the paper's multiple choice without a chain of thought."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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


def make_logprob(options: LogprobOptions, context: StageContext) -> Labeler:
    """Asks the model in the role ``judge``."""
    from cai_plugins.labelers.logprob import LogprobLabeler

    return LogprobLabeler(options, context)


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
