"""The whole plugin surface on one page.

A plugin is an importable module named by an entry point of the group ``cai_core``::

    [project.entry-points.cai_core]
    my_labelers = "my_package.plugin"

The module holds functions marked with ``hookimpl``. Each yields ``Component`` objects and does nothing else: it runs
when components are listed, so heavy imports belong in the factories. No hook is called while data flow; the pipeline
calls the objects that factories return, by the Protocol of their kind, with what ``cai_core.types`` says of it.

The example of every hook is a whole plugin: it runs as it is. ``cai plugins new NAME --kind KIND`` makes a package of
it, with tests of the kind's contract (``cai_core.testing``).
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
"""Raised when a contract changes in a way that plugins must follow. A plugin's module may say which versions it is
written for: ``CAI_HOOKSPEC_VERSION = 1``, or a tuple of several."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def cai_register_backends() -> Iterable[Component[Backend]]:
    """Offer components of kind ``backend``: models that can be asked, in this process or on a server.

    Called once, when plugins are loaded; the factory when a stage first asks a model in some role. The options must
    have a field ``model``, which the pipeline sets to a folder or hub id.
    Return an iterable of ``Component`` whose factories return a ``Backend`` (``cai_core.types.backend``).

    Example::

        from collections.abc import Iterable, Iterator, Sequence

        from cai_core.errors import CAIError
        from cai_core.hookspecs import hookimpl
        from cai_core.types.backend import Backend, Capabilities, Completion, GenerateRequest, ScoreRequest, Scores
        from cai_core.types.component import Component
        from cai_core.types.context import StageContext
        from cai_core.types.records import UnitFailure
        from pydantic import BaseModel, ConfigDict, Field


        class ParrotOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            model: str = Field("", description="folder or hub id; the pipeline fills it in")
            words: int = Field(20, ge=1, description="words of the last turn that are repeated")


        class Parrot:
            capabilities = Capabilities(generate=True, score=False)
            context_length = 4096

            def __init__(self, options: ParrotOptions) -> None:
                self.options = options

            def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
                for request in requests:
                    heard = (request.input.text or request.input.messages[-1].content).split()
                    if len(heard) + request.sampling.max_new_tokens > self.context_length:
                        failure = UnitFailure("too_long", f"{len(heard)} words, room for {self.context_length}")
                        yield Completion(request.id, "", "error", failure=failure)
                        continue
                    said = heard[: min(self.options.words, request.sampling.max_new_tokens)]
                    text = " ".join(said)
                    for stop in request.input.stop:
                        text = text.partition(stop)[0]
                    yield Completion(request.id, text, "stop", len(heard), len(said))

            def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Scores]:
                raise CAIError("a parrot knows no probabilities", hint="choose a backend that can score")

            def update_weights(self, version: int) -> None:
                raise NotImplementedError

            def close(self) -> None:
                pass


        def make_parrot(options: ParrotOptions, context: StageContext) -> Backend:
            return Parrot(options)


        @hookimpl
        def cai_register_backends() -> Iterable[Component[Backend]]:
            yield Component("parrot", ParrotOptions, make_parrot, "repeats the last turn")
    """
    raise NotImplementedError


@hookspec
def cai_register_prompts() -> Iterable[Component[PromptSource]]:
    """Offer components of kind ``prompts``: sources of prompts.

    Called once, when plugins are loaded; the factory when a recipe's ``prompts`` is read.
    Return an iterable of ``Component`` whose factories return a ``PromptSource`` (``cai_core.types.prompts``).

    Example::

        from collections.abc import Iterable, Sequence

        from cai_core.hookspecs import hookimpl
        from cai_core.types.component import Component
        from cai_core.types.context import StageContext
        from cai_core.types.prompts import Prompt, PromptSource, Split
        from cai_core.types.records import Message
        from pydantic import BaseModel, ConfigDict, Field


        class TopicsOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            topics: tuple[str, ...] = Field(
                ("bread", "soap", "glue", "ink", "beer", "paint"), min_length=1, description="what is asked about"
            )
            heldout_every: int = Field(3, ge=2, description="every so many-th prompt is kept for evaluation")


        class Topics:
            def __init__(self, options: TopicsOptions) -> None:
                self.options = options

            def load(self) -> Sequence[Prompt]:
                prompts = []
                for number, topic in enumerate(self.options.topics, 1):
                    split: Split = "train" if number % self.options.heldout_every else "heldout"
                    messages = (Message("user", f"How is {topic} made at home?"),)
                    prompts.append(Prompt(f"topic-{number}", messages, "red_team", split, "topics"))
                return prompts


        def make_topics(options: TopicsOptions, context: StageContext) -> PromptSource:
            return Topics(options)


        @hookimpl
        def cai_register_prompts() -> Iterable[Component[PromptSource]]:
            yield Component("topics", TopicsOptions, make_topics, "one question per topic")
    """
    raise NotImplementedError


@hookspec
def cai_register_principle_samplers() -> Iterable[Component[PrincipleSampler]]:
    """Offer components of kind ``principle_sampler``: how the principles of one unit are drawn.

    Called once, when plugins are loaded; the factory when ``revise``, ``label`` and the audit draw principles.
    Return an iterable of ``Component`` whose factories return a ``PrincipleSampler`` (``cai_core.types.principles``).

    Example::

        import random
        from collections.abc import Iterable, Sequence

        from cai_core.hookspecs import hookimpl
        from cai_core.types.component import Component
        from cai_core.types.context import StageContext
        from cai_core.types.principles import Principle, PrincipleSampler
        from cai_core.types.prompts import Prompt
        from pydantic import BaseModel, ConfigDict, Field


        class TaggedOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            tag: str = Field("", description="draw among the principles with this tag; among all where none has it")


        class Tagged:
            def __init__(self, options: TaggedOptions) -> None:
                self.tag = options.tag

            def sample(
                self, principles: Sequence[Principle], *, prompt: Prompt, step: str, index: int, rng: random.Random
            ) -> tuple[Principle, ...]:
                tagged = [principle for principle in principles if self.tag in principle.tags]
                return (rng.choice(tagged or list(principles)),)


        def make_tagged(options: TaggedOptions, context: StageContext) -> PrincipleSampler:
            return Tagged(options)


        @hookimpl
        def cai_register_principle_samplers() -> Iterable[Component[PrincipleSampler]]:
            yield Component("tagged", TaggedOptions, make_tagged, "one principle with a tag")
    """
    raise NotImplementedError


@hookspec
def cai_register_critique_templates() -> Iterable[Component[CritiqueTemplate]]:
    """Offer components of kind ``critique_template``: prompts of critique and revision.

    Called once, when plugins are loaded; the factory when ``revise`` renders and reads back.
    Return an iterable of ``Component`` whose factories return a ``CritiqueTemplate`` (``cai_core.types.critique``).

    Example::

        from collections.abc import Iterable

        from cai_core.errors import UnitError
        from cai_core.hookspecs import hookimpl
        from cai_core.types.component import Component
        from cai_core.types.context import StageContext
        from cai_core.types.critique import CritiqueTemplate
        from cai_core.types.principles import Principle
        from cai_core.types.records import Conversation, Message, ModelInput
        from pydantic import BaseModel, ConfigDict, Field


        class TerseOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            reminder: str = Field("Answer in one sentence.", description="ends the request for a critique")


        class Terse:
            critiques = True

            def __init__(self, options: TerseOptions) -> None:
                self.options = options

            def answer(self, prompt: Conversation) -> ModelInput:
                return ModelInput(messages=prompt)

            def critique(self, prompt: Conversation, response: str, principle: Principle) -> ModelInput:
                request = f"{principle.critique} {self.options.reminder}"
                return ModelInput(messages=(*prompt, Message("assistant", response), Message("user", request)))

            def revision(self, prompt: Conversation, response: str, critique: str, principle: Principle) -> ModelInput:
                request = f"{critique}\\n\\n{principle.revision}"
                return ModelInput(messages=(*prompt, Message("assistant", response), Message("user", request)))

            def read_answer(self, text: str, *, cut: bool = False) -> str:
                return self._read(text)

            def read_critique(self, text: str, *, cut: bool = False) -> str:
                return self._read(text)

            def read_revision(self, text: str, *, cut: bool = False) -> str:
                return self._read(text)

            def _read(self, text: str) -> str:
                if not text.strip():
                    raise UnitError("unparseable", "the model wrote nothing")
                return text.strip()


        def make_terse(options: TerseOptions, context: StageContext) -> CritiqueTemplate:
            return Terse(options)


        @hookimpl
        def cai_register_critique_templates() -> Iterable[Component[CritiqueTemplate]]:
            yield Component("terse", TerseOptions, make_terse, "critiques of one sentence")
    """
    raise NotImplementedError


@hookspec
def cai_register_labelers() -> Iterable[Component[Labeler]]:
    """Offer components of kind ``labeler``: comparisons -> P(A preferred).

    Called once, when plugins are loaded; the factory when ``label`` judges pairs, and when the judge is audited.
    Return an iterable of ``Component`` whose factories return a ``Labeler`` (``cai_core.types.labeler``).

    Example::

        import math
        from collections.abc import Iterable, Iterator, Sequence

        from cai_core.hookspecs import hookimpl
        from cai_core.types.component import Component
        from cai_core.types.context import StageContext
        from cai_core.types.labeler import Comparison, Label, Labeler
        from pydantic import BaseModel, ConfigDict, Field


        class ShorterOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            scale: float = Field(100.0, gt=0, description="characters per nat of preference")


        class Shorter:
            def __init__(self, options: ShorterOptions) -> None:
                self.scale = options.scale

            def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
                for comparison in comparisons:
                    longer = len(comparison.response_a) - len(comparison.response_b)
                    yield Label(comparison.id, 0.5 - math.tanh(longer / self.scale / 2) / 2, {"longer": longer})


        def make_shorter(options: ShorterOptions, context: StageContext) -> Labeler:
            return Shorter(options)


        @hookimpl
        def cai_register_labelers() -> Iterable[Component[Labeler]]:
            yield Component("shorter", ShorterOptions, make_shorter, "prefers the shorter answer")
    """
    raise NotImplementedError


@hookspec
def cai_register_trainers() -> Iterable[Component[Trainer]]:
    """Offer components of kind ``trainer``: SFT on conversations.

    Called once, when plugins are loaded; the factory when ``sft`` trains, or an RL algorithm asks for a trainer.
    Return an iterable of ``Component`` whose factories return a ``Trainer`` (``cai_core.types.trainer``).

    Example::

        import json
        import os
        from collections.abc import Iterable, Sequence
        from pathlib import Path
        from typing import Any

        from cai_core.errors import CAIError, UserError
        from cai_core.hookspecs import hookimpl
        from cai_core.types.component import EXECUTION, Component
        from cai_core.types.context import StageContext
        from cai_core.types.trainer import Example, Trainer, TrainResult
        from pydantic import BaseModel, ConfigDict, Field


        class PlainOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            learning_rate: float = Field(0.01, ge=0, description="of stochastic gradient descent")
            epochs: int = Field(1, ge=1, description="passes over the examples")
            save_steps: int = Field(50, ge=1, description="steps between checkpoints", json_schema_extra=EXECUTION)


        class Plain:
            def __init__(self, options: PlainOptions, context: StageContext) -> None:
                self.options = options
                self.context = context

            def train(self, model: Path, examples: Sequence[Example], out: Path) -> TrainResult:
                import torch  # heavy libraries are imported where they are used, never at the top of a plugin
                from transformers import AutoModelForCausalLM, AutoTokenizer

                for example in examples:
                    if len(example.messages) < 2 or example.messages[-1].role != "assistant":
                        raise UserError("it does not end on an answer", where=f"example {example.id!r}")
                if not examples:
                    raise UserError("no example to train on", where="trainer")
                tokenizer: Any = AutoTokenizer.from_pretrained(model)
                # Without momentum there is nothing to keep but the weights, and a restart goes on exactly.
                state = self.context.workdir / "plain"
                log = state / "curve.json"
                curve = json.loads(log.read_text()) if log.is_file() else []
                start = state / f"step-{len(curve)}" if curve else model
                network: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
                network.to(self.context.device)
                descent = torch.optim.SGD(network.parameters(), lr=self.options.learning_rate)
                order = [example for _ in range(self.options.epochs) for example in examples]
                for step in range(len(curve) + 1, len(order) + 1):
                    turns = [message.as_dict() for message in order[step - 1].messages]
                    whole = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
                    asked = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=True)
                    ids = whole["input_ids"].to(network.device)
                    labels = ids.clone()
                    labels[:, : len(asked["input_ids"])] = -100  # only the answer is learnt
                    loss = network(ids, labels=labels).loss
                    if not loss.isfinite():
                        raise CAIError(f"the loss is {loss.item()} at step {step}", hint="lower learning_rate")
                    descent.zero_grad()
                    loss.backward()
                    descent.step()
                    curve.append({"step": float(step), "loss": loss.item()})
                    if step % self.options.save_steps == 0:
                        network.save_pretrained(state / f"step-{step}")
                        (state / "next.json").write_text(json.dumps(curve))
                        os.replace(state / "next.json", log)
                    self.context.progress.update(step, len(order), "steps")
                network.save_pretrained(out)
                tokenizer.save_pretrained(out)
                return TrainResult({"loss_first": curve[0]["loss"], "loss_last": curve[-1]["loss"]}, curve)


        def make_plain(options: PlainOptions, context: StageContext) -> Trainer:
            return Plain(options, context)


        @hookimpl
        def cai_register_trainers() -> Iterable[Component[Trainer]]:
            yield Component("plain", PlainOptions, make_plain, "supervised fine-tuning, one example at a time")
    """
    raise NotImplementedError


@hookspec
def cai_register_reward_models() -> Iterable[Component[RewardModel]]:
    """Offer components of kind ``reward_model``: fit on preferences, score answers.

    Called once, when plugins are loaded; the factory when ``reward`` fits, and when ``rl`` and ``evaluate`` score.
    Return an iterable of ``Component`` whose factories return a ``RewardModel`` (``cai_core.types.reward``).

    Example::

        import json
        import math
        from collections.abc import Iterable, Sequence
        from pathlib import Path

        from cai_core.errors import CAIError, UserError
        from cai_core.hookspecs import hookimpl
        from cai_core.types.component import Component
        from cai_core.types.context import StageContext
        from cai_core.types.reward import Exchange, Preference, RewardModel
        from cai_core.types.trainer import TrainResult
        from pydantic import BaseModel, ConfigDict, Field


        class WordsOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            learning_rate: float = Field(0.1, ge=0, description="of gradient descent on the words' weights")
            epochs: int = Field(5, ge=1, description="passes over the comparisons")


        class Words:
            def __init__(self, options: WordsOptions) -> None:
                self.options = options
                self.weights: dict[str, float] | None = None

            def fit(self, model: Path, preferences: Sequence[Preference], out: Path) -> TrainResult:
                self.weights = {}
                curve = []
                for epoch in range(self.options.epochs):
                    loss = 0.0
                    for pair in preferences:
                        if not 0 <= pair.p_a <= 1:
                            raise UserError(f"p_a is {pair.p_a}, not a probability", where=f"comparison {pair.id!r}")
                        believed = 1 / (1 + math.exp(self._score(pair.response_b) - self._score(pair.response_a)))
                        # The gradient of the cross-entropy between the label and what is believed.
                        gradient = believed - pair.p_a
                        for text, sign in ((pair.response_a, 1), (pair.response_b, -1)):
                            for word in set(text.lower().split()):
                                change = self.options.learning_rate * gradient * sign
                                self.weights[word] = self.weights.get(word, 0.0) - change
                        loss += abs(gradient)
                    curve.append({"step": float(epoch + 1), "loss": loss / max(1, len(preferences))})
                out.mkdir(parents=True, exist_ok=True)
                (out / "words.json").write_text(json.dumps(self.weights), encoding="utf-8")
                return TrainResult({"words": float(len(self.weights))}, curve)

            def load(self, path: Path) -> None:
                self.weights = json.loads((path / "words.json").read_text(encoding="utf-8"))

            def score(self, exchanges: Sequence[Exchange]) -> list[float]:
                if self.weights is None:
                    raise CAIError("the reward model is neither fitted nor loaded")
                return [self._score(exchange.response) for exchange in exchanges]

            def _score(self, text: str) -> float:
                weights = self.weights or {}
                return math.fsum(weights.get(word, 0.0) for word in set(text.lower().split()))


        def make_words(options: WordsOptions, context: StageContext) -> RewardModel:
            return Words(options)


        @hookimpl
        def cai_register_reward_models() -> Iterable[Component[RewardModel]]:
            yield Component("words", WordsOptions, make_words, "a weight for every word, learnt from the labels")
    """
    raise NotImplementedError


@hookspec
def cai_register_rl_algorithms() -> Iterable[Component[RLAlgorithm]]:
    """Offer components of kind ``rl_algorithm``: policy + prompts + reward -> policy.

    Called once, when plugins are loaded; the factory when ``rl`` improves the policy.
    Return an iterable of ``Component`` whose factories return an ``RLAlgorithm`` (``cai_core.types.rl``).

    Example::

        import json
        import os
        from collections.abc import Iterable, Sequence
        from pathlib import Path
        from typing import Any

        from cai_core.errors import CAIError, UserError
        from cai_core.hookspecs import hookimpl
        from cai_core.types.component import EXECUTION, Component
        from cai_core.types.context import StageContext
        from cai_core.types.prompts import Prompt
        from cai_core.types.reward import Exchange, RewardModel
        from cai_core.types.rl import RLAlgorithm
        from cai_core.types.trainer import TrainResult
        from pydantic import BaseModel, ConfigDict, Field


        class ReinforceOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            steps: int = Field(20, ge=1, description="gradient steps")
            samples: int = Field(8, ge=2, description="samples a step, of one prompt; their mean is the baseline")
            max_new_tokens: int = Field(16, ge=1, description="tokens per sample at most")
            learning_rate: float = Field(0.01, ge=0, description="of stochastic gradient descent")
            save_steps: int = Field(20, ge=1, description="steps between checkpoints", json_schema_extra=EXECUTION)


        class Reinforce:
            def __init__(self, options: ReinforceOptions, context: StageContext) -> None:
                self.options = options
                self.context = context

            def train(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel, out: Path) -> TrainResult:
                import torch  # heavy libraries are imported where they are used, never at the top of a plugin
                from transformers import AutoModelForCausalLM, AutoTokenizer

                options = self.options
                if not prompts:
                    raise UserError("no prompt to sample answers for", where="rl")
                tokenizer: Any = AutoTokenizer.from_pretrained(policy)
                # Without momentum there is nothing to keep but the weights, and a restart goes on exactly.
                state = self.context.workdir / "reinforce"
                log = state / "curve.json"
                curve = json.loads(log.read_text()) if log.is_file() else []
                start = state / f"step-{len(curve)}" if curve else policy
                network: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
                network.to(self.context.device)
                descent = torch.optim.SGD(network.parameters(), lr=options.learning_rate)
                for step in range(len(curve) + 1, options.steps + 1):
                    prompt = prompts[(step - 1) % len(prompts)]
                    asked = tokenizer.apply_chat_template(
                        [message.as_dict() for message in prompt.messages],
                        add_generation_prompt=True,
                        return_tensors="pt",
                        return_dict=True,
                    ).to(network.device)
                    # A step's random numbers depend on the step alone, not on where the run was last started.
                    torch.manual_seed((self.context.seed + step) % 2**63)
                    sequences = network.generate(
                        **asked,
                        do_sample=True,
                        top_k=0,
                        num_return_sequences=options.samples,
                        max_new_tokens=options.max_new_tokens,
                        pad_token_id=tokenizer.pad_token_id,
                    )
                    said = sequences[:, asked["input_ids"].shape[1] :]
                    texts = tokenizer.batch_decode(said, skip_special_tokens=True)
                    answers = [Exchange(f"{prompt.id}/{k}", prompt.messages, text) for k, text in enumerate(texts)]
                    rewards = torch.tensor(reward.score(answers), device=network.device)
                    if not rewards.isfinite().all():
                        raise CAIError(f"a reward at step {step} is not finite")
                    better = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
                    scores = network(sequences).logits[:, -said.shape[1] - 1 : -1].log_softmax(-1)
                    logp = scores.gather(2, said[..., None]).squeeze(2)
                    # The first end of turn is the sample's own choice; what stands behind it is padding.
                    ended = (said == tokenizer.eos_token_id).cumsum(1)
                    mask = (ended - (said == tokenizer.eos_token_id).long() == 0).float()
                    descent.zero_grad()
                    (-(better[:, None] * logp * mask).sum() / mask.sum()).backward()
                    descent.step()
                    curve.append({"step": float(step), "reward": rewards.mean().item()})
                    if step % options.save_steps == 0:
                        network.save_pretrained(state / f"step-{step}")
                        (state / "next.json").write_text(json.dumps(curve))
                        os.replace(state / "next.json", log)
                    self.context.progress.update(step, options.steps, "steps")
                network.save_pretrained(out)
                tokenizer.save_pretrained(out)
                return TrainResult({"reward_first": curve[0]["reward"], "reward_last": curve[-1]["reward"]}, curve)


        def make_reinforce(options: ReinforceOptions, context: StageContext) -> RLAlgorithm:
            return Reinforce(options, context)


        @hookimpl
        def cai_register_rl_algorithms() -> Iterable[Component[RLAlgorithm]]:
            yield Component("reinforce", ReinforceOptions, make_reinforce, "REINFORCE with the mean reward as baseline")
    """
    raise NotImplementedError


@hookspec
def cai_register_evaluators() -> Iterable[Component[Evaluator]]:
    """Offer components of kind ``evaluator``: models -> metrics with n and interval.

    Called once, when plugins are loaded; the factory when ``evaluate`` measures models side by side.
    Return an iterable of ``Component`` whose factories return an ``Evaluator`` (``cai_core.types.evaluator``).

    Example::

        import math
        from collections.abc import Iterable, Iterator, Sequence

        from cai_core.hookspecs import hookimpl
        from cai_core.types.component import Component
        from cai_core.types.context import StageContext
        from cai_core.types.evaluator import EvalInput, EvalRow, Evaluator, EvalUnit, Metric
        from pydantic import BaseModel, ConfigDict, Field


        class QuestionsOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            mark: str = Field("?", min_length=1, description="what a question ends with")


        class Questions:
            def __init__(self, options: QuestionsOptions) -> None:
                self.mark = options.mark

            def units(self, given: EvalInput) -> Sequence[EvalUnit]:
                return [EvalUnit(answer.prompt.id, answer.model, {"answer": answer.text}) for answer in given.answers]

            def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
                for unit in units:
                    asks = unit.payload["answer"].rstrip().endswith(self.mark)
                    yield EvalRow(unit.id, unit.model, {"asks": float(asks)})

            def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
                models = dict.fromkeys(row.model for row in rows)
                return [self._rate(model, [row for row in rows if row.model == model]) for model in models]

            def _rate(self, model: str, rows: Sequence[EvalRow]) -> Metric:
                asks = {row.id: row.values["asks"] for row in rows if row.failure is None}
                n, failed = len(asks), len(rows) - len(asks)
                value = low = high = None
                if n:
                    value = sum(asks.values()) / n
                    low, high = wilson(value, n)
                label = "answers that ask back"
                return Metric("questions", label, model, value, low, high, n, failed, "Wilson 95 %", per_item=asks)


        def wilson(rate: float, n: int) -> tuple[float, float]:
            z = 1.959963984540054  # of the normal distribution, for 95 %
            centre, scale = rate + z * z / (2 * n), 1 + z * z / n
            spread = z * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
            return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


        def make_questions(options: QuestionsOptions, context: StageContext) -> Evaluator:
            return Questions(options)


        @hookimpl
        def cai_register_evaluators() -> Iterable[Component[Evaluator]]:
            yield Component("questions", QuestionsOptions, make_questions, "share of answers that end with a question")
    """
    raise NotImplementedError


@hookspec
def cai_register_reporters() -> Iterable[Component[Reporter]]:
    """Offer components of kind ``reporter``: results -> files.

    Called once, when plugins are loaded; the factory when ``report`` writes.
    Return an iterable of ``Component`` whose factories return a ``Reporter`` (``cai_core.types.reporter``).

    Example::

        from collections.abc import Iterable, Mapping, Sequence
        from pathlib import Path
        from typing import Any

        from cai_core.hookspecs import hookimpl
        from cai_core.types.component import Component
        from cai_core.types.context import StageContext
        from cai_core.types.reporter import Reporter
        from pydantic import BaseModel, ConfigDict, Field


        class LinesOptions(BaseModel):
            model_config = ConfigDict(extra="forbid", frozen=True)

            digits: int = Field(3, ge=0, le=12, description="digits after the point")


        class Lines:
            def __init__(self, options: LinesOptions) -> None:
                self.digits = options.digits

            def write(self, results: Mapping[str, Any], out: Path) -> Sequence[Path]:
                lines = [results["title"]]
                for metric in results["metrics"]:
                    for model, found in metric["values"].items():
                        value = "not scored" if found["value"] is None else f"{found['value']:.{self.digits}f}"
                        lines.append(f"{metric['label']}, {model}: {value} (n = {found['n']})")
                # A model may have written any text: characters that steer a terminal are taken out.
                clean = ["".join(c if c.isprintable() else " " for c in line) for line in lines]
                path = out / "report.txt"
                path.write_text("\\n".join(clean) + "\\n", encoding="utf-8")
                return [path]


        def make_lines(options: LinesOptions, context: StageContext) -> Reporter:
            return Lines(options)


        @hookimpl
        def cai_register_reporters() -> Iterable[Component[Reporter]]:
            yield Component("lines", LinesOptions, make_lines, "one line of text per metric and model")
    """
    raise NotImplementedError
