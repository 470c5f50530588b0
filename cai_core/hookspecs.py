"""The whole plugin surface on one page.

A plugin is an importable module named by an entry point of the group ``cai_core``::

    [project.entry-points.cai_core]
    my_labelers = "my_package.plugin"

The module holds functions marked with ``hookimpl``. Each yields ``Component`` objects and does nothing else: it runs
when components are listed, so heavy imports belong in the factories. No hook is called while data flow; the pipeline
calls the objects that factories return, by the Protocol of their kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from cai_core.types.component import Component

if TYPE_CHECKING:
    from cai_core.types.backend import Backend
    from cai_core.types.critique import CritiqueTemplate
    from cai_core.types.evaluator import Evaluator
    from cai_core.types.labeler import Labeler
    from cai_core.types.principles import PrincipleSampler
    from cai_core.types.prompts import PromptSource
    from cai_core.types.reporter import Reporter
    from cai_core.types.reward import RewardModel
    from cai_core.types.rl import RLAlgorithm
    from cai_core.types.trainer import Trainer

PROJECT = "cai_core"
"""Name of the pluggy project and of the entry-point group."""

HOOKSPEC_VERSION = 1
"""Raised when a hook's contract changes in a way that plugins must follow."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def cai_register_backends() -> Iterable[Component[Backend]]:
    """Offer components of kind ``backend``: models that can be asked: in process, or a server.

    Called once, when plugins are loaded; the factory when a model is opened by a stage.
    Return an iterable of ``Component`` whose factories return a ``Backend`` (``cai_core.types.backend``).

    Example::

        class EchoOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

        def make_echo(options: EchoOptions, context: StageContext) -> Backend:
            from my_package.echo import EchoBackend
            return EchoBackend(options)

        @hookimpl
        def cai_register_backends() -> Iterable[Component[Backend]]:
            yield Component("echo2", EchoOptions, make_echo, "repeats the last user turn")
    """
    raise NotImplementedError


@hookspec
def cai_register_prompts() -> Iterable[Component[PromptSource]]:
    """Offer components of kind ``prompts``: sources of prompts.

    Called once, when plugins are loaded; the factory when a recipe's ``prompts`` is read.
    Return an iterable of ``Component`` whose factories return a ``PromptSource`` (``cai_core.types.prompts``).

    Example::

        class CsvOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)
            path: Path

        def make_csv(options: CsvOptions, context: StageContext) -> PromptSource:
            from my_package.csv_prompts import CsvPrompts
            return CsvPrompts(options.path)

        @hookimpl
        def cai_register_prompts() -> Iterable[Component[PromptSource]]:
            yield Component("csv", CsvOptions, make_csv, "prompts from a CSV file")
    """
    raise NotImplementedError


@hookspec
def cai_register_principle_samplers() -> Iterable[Component[PrincipleSampler]]:
    """Offer components of kind ``principle_sampler``: how the principles of one unit are drawn.

    Called once, when plugins are loaded; the factory when ``revise`` and ``label`` draw principles.
    Return an iterable of ``Component`` whose factories return a ``PrincipleSampler`` (``cai_core.types.principles``).

    Example::

        class FirstOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

        class First:
            def sample(self, principles, *, prompt, step, index, rng):
                return (principles[0],)

        @hookimpl
        def cai_register_principle_samplers() -> Iterable[Component[PrincipleSampler]]:
            yield Component("first", FirstOptions, lambda options, context: First(), "always the first principle")
    """
    raise NotImplementedError


@hookspec
def cai_register_critique_templates() -> Iterable[Component[CritiqueTemplate]]:
    """Offer components of kind ``critique_template``: prompts of critique and revision.

    Called once, when plugins are loaded; the factory when ``revise`` renders and reads back.
    Return an iterable of ``Component`` whose factories return a ``CritiqueTemplate`` (``cai_core.types.critique``).

    Example::

        class TerseOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

        def make_terse(options: TerseOptions, context: StageContext) -> CritiqueTemplate:
            from my_package.terse import TerseTemplate
            return TerseTemplate()

        @hookimpl
        def cai_register_critique_templates() -> Iterable[Component[CritiqueTemplate]]:
            yield Component("terse", TerseOptions, make_terse, "one-sentence critiques")
    """
    raise NotImplementedError


@hookspec
def cai_register_labelers() -> Iterable[Component[Labeler]]:
    """Offer components of kind ``labeler``: comparisons -> P(A preferred).

    Called once, when plugins are loaded; the factory when ``label`` judges pairs, and the judge is audited.
    Return an iterable of ``Component`` whose factories return a ``Labeler`` (``cai_core.types.labeler``).

    Example::

        class LengthOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)
            scale: float = Field(100.0, gt=0, description="characters per nat of preference")

        class LengthLabeler:
            def __init__(self, scale: float) -> None:
                self.scale = scale

            def label(self, comparisons):
                for c in comparisons:
                    d = (len(c.response_b) - len(c.response_a)) / self.scale
                    yield Label(c.id, 1 / (1 + math.exp(-d)))

        @hookimpl
        def cai_register_labelers() -> Iterable[Component[Labeler]]:
            yield Component("shorter", LengthOptions, lambda o, ctx: LengthLabeler(o.scale), "prefers the shorter")
    """
    raise NotImplementedError


@hookspec
def cai_register_trainers() -> Iterable[Component[Trainer]]:
    """Offer components of kind ``trainer``: SFT on conversations.

    Called once, when plugins are loaded; the factory when ``sft`` trains, or an RL algorithm asks for a trainer.
    Return an iterable of ``Component`` whose factories return a ``Trainer`` (``cai_core.types.trainer``).

    Example::

        def make_frozen(options: FrozenOptions, context: StageContext) -> Trainer:
            from my_package.frozen import FrozenTrainer
            return FrozenTrainer(options, context)

        @hookimpl
        def cai_register_trainers() -> Iterable[Component[Trainer]]:
            yield Component("frozen", FrozenOptions, make_frozen, "SFT of the last layers")
    """
    raise NotImplementedError


@hookspec
def cai_register_reward_models() -> Iterable[Component[RewardModel]]:
    """Offer components of kind ``reward_model``: fit on preferences, score answers.

    Called once, when plugins are loaded; the factory when ``reward`` fits, ``rl`` and ``evaluate`` score.
    Return an iterable of ``Component`` whose factories return a ``RewardModel`` (``cai_core.types.reward``).

    Example::

        def make_rules(options: RulesOptions, context: StageContext) -> RewardModel:
            from my_package.rules import RulesReward
            return RulesReward(options)

        @hookimpl
        def cai_register_reward_models() -> Iterable[Component[RewardModel]]:
            yield Component("my_rules", RulesOptions, make_rules, "weighted regular expressions")
    """
    raise NotImplementedError


@hookspec
def cai_register_rl_algorithms() -> Iterable[Component[RLAlgorithm]]:
    """Offer components of kind ``rl_algorithm``: policy + prompts + reward -> policy.

    Called once, when plugins are loaded; the factory when ``rl`` improves the policy.
    Return an iterable of ``Component`` whose factories return a ``RLAlgorithm`` (``cai_core.types.rl``).

    Example::

        def make_reinforce(options: ReinforceOptions, context: StageContext) -> RLAlgorithm:
            from my_package.reinforce import Reinforce
            return Reinforce(options, context)

        @hookimpl
        def cai_register_rl_algorithms() -> Iterable[Component[RLAlgorithm]]:
            yield Component("reinforce", ReinforceOptions, make_reinforce, "REINFORCE with a mean baseline")
    """
    raise NotImplementedError


@hookspec
def cai_register_evaluators() -> Iterable[Component[Evaluator]]:
    """Offer components of kind ``evaluator``: models -> metrics with n and interval.

    Called once, when plugins are loaded; the factory when ``evaluate`` measures models side by side.
    Return an iterable of ``Component`` whose factories return a ``Evaluator`` (``cai_core.types.evaluator``).

    Example::

        def make_emoji(options: EmojiOptions, context: StageContext) -> Evaluator:
            from my_package.emoji import EmojiRate
            return EmojiRate()

        @hookimpl
        def cai_register_evaluators() -> Iterable[Component[Evaluator]]:
            yield Component("emoji", EmojiOptions, make_emoji, "share of answers with an emoji")
    """
    raise NotImplementedError


@hookspec
def cai_register_reporters() -> Iterable[Component[Reporter]]:
    """Offer components of kind ``reporter``: results -> files.

    Called once, when plugins are loaded; the factory when ``report`` writes.
    Return an iterable of ``Component`` whose factories return a ``Reporter`` (``cai_core.types.reporter``).

    Example::

        def make_text(options: TextOptions, context: StageContext) -> Reporter:
            from my_package.text import TextReporter
            return TextReporter()

        @hookimpl
        def cai_register_reporters() -> Iterable[Component[Reporter]]:
            yield Component("text", TextOptions, make_text, "a plain-text summary")
    """
    raise NotImplementedError
