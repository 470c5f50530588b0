"""Principle samplers: which principles one unit and step gets."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from cai_core.hookspecs import hookimpl
from cai_core.types.component import Component
from cai_core.types.context import StageContext
from cai_core.types.principles import PrincipleSampler


class DrawOptions(BaseModel):
    """Options of samplers that draw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The paper draws one principle per step (sections 3.1 and 4.1).
    count: int = Field(
        1, ge=1, description="principles per comparison, all different; labels average over them. Revision uses one"
    )


class RelevantOptions(DrawOptions):
    """Options of ``relevant``."""

    # Our choice: related texts have similarities of about 0.1 to 0.5; at 0.2 such a principle is up to twelve times as
    # likely as an unrelated one, and none is out of the question.
    temperature: float = Field(
        0.2, gt=0, description="how much similarity counts; large is uniform, small takes the best"
    )


class NoOptions(BaseModel):
    """No options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def make_uniform(options: DrawOptions, context: StageContext) -> PrincipleSampler:
    """Every principle alike."""
    from cai_plugins.principles.samplers import Uniform

    return Uniform(options.count)


def make_weighted(options: DrawOptions, context: StageContext) -> PrincipleSampler:
    """In proportion to ``weight``."""
    from cai_plugins.principles.samplers import Weighted

    return Weighted(options.count)


def make_relevant(options: RelevantOptions, context: StageContext) -> PrincipleSampler:
    """By what the prompt speaks of."""
    from cai_plugins.principles.samplers import Relevant

    return Relevant(options.count, options.temperature)


def make_round_robin(options: NoOptions, context: StageContext) -> PrincipleSampler:
    """One after the other."""
    from cai_plugins.principles.samplers import RoundRobin

    return RoundRobin()


def make_all(options: NoOptions, context: StageContext) -> PrincipleSampler:
    """All of them."""
    from cai_plugins.principles.samplers import All

    return All()


@hookimpl
def cai_register_principle_samplers() -> Iterable[Component[PrincipleSampler]]:
    """The built-in samplers."""
    yield Component("uniform", DrawOptions, make_uniform, "draws uniformly at random, as the paper does")
    yield Component("weighted", DrawOptions, make_weighted, "draws in proportion to each principle's weight")
    yield Component("relevant", RelevantOptions, make_relevant, "prefers principles that share words with the prompt")
    yield Component("round_robin", NoOptions, make_round_robin, "each in turn over the rounds of a prompt")
    yield Component("all", NoOptions, make_all, "every principle; a label averages over all of them")
