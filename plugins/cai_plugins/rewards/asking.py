"""Questions about one answer to the model in the role "judge", answered by the probabilities of fixed continuations."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cai_core.errors import CAIError, UserError
from cai_core.text.judging import inside_brackets, over_options, unscored
from cai_core.text.transcripts import render_transcript
from cai_core.types.backend import ChecksScores, ScoreRequest
from cai_core.types.context import StageContext
from cai_core.types.records import Conversation, Message, ModelInput, UnitFailure
from cai_core.types.reward import Exchange

log = logging.getLogger(__name__)
MASS_SLACK = 1e-3
"""Rounding that the sum of the continuations' probabilities may have over 1."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``p``: probability of each continuation, normalised over them; ``mass``: what they had together before."""

    p: tuple[float, ...]
    mass: float


class Asking:
    """Asks with ``continuations`` after ``prefill``.

    No continuation may begin with another: then they exclude each other, and their probabilities add up to at most 1.
    Equal questions are asked once. A conversation that does not fit the judge loses its earliest exchanges. A judge
    that refuses, or that the shortest form does not fit, leaves None where ``tolerant`` (counted in the log), else
    ``CAIError`` names the answer; so does a fault of machine or server, always: the same command goes on from there.
    """

    def __init__(
        self,
        context: StageContext,
        continuations: tuple[str, ...],
        prefill: str,
        form: Literal["chat", "text"],
        *,
        tolerant: bool,
    ) -> None:
        self.context = context
        self.continuations = continuations
        self.prefill = prefill
        self.form = form
        self.tolerant = tolerant
        self._checked = False

    def check(self) -> None:
        """``UserError`` when the judge has no log-probabilities, or its tokenizer cuts the continuations differently
        after the question than on their own; ``CAIError`` when it cannot tell them apart. Asked for once, before the
        first question."""
        if self._checked:
            return
        judge = self.context.backend("judge")
        if not judge.capabilities.score:
            raise UserError(
                "this reward reads the judge's log-probabilities, and its backend has none",
                where="models.judge",
                hint="use a backend that can score, or `reward: preference` with `labeler: verdict`",
            )
        probe = self._input((Message("user", "How are you?"),), "Fine.", "Say how good this is.")
        request = ScoreRequest("check", probe, self.continuations)
        # A backend raises by itself where two continuations have the same tokens.
        if isinstance(judge, ChecksScores) and (problem := judge.score_problem(request)):
            raise UserError(
                f"the judge's tokenizer does not score what is meant: {problem}",
                where="models.judge",
                hint="use another model as judge, or `reward: preference` with `labeler: verdict`",
            )
        (scores,) = judge.score([request])
        if failure := unscored(scores):
            raise CAIError(f"the judge failed at a first short question: {failure.message}", where="models.judge")
        total = sum(map(math.exp, scores.logprobs))
        if total > 1 + MASS_SLACK:
            raise CAIError(
                f"the probabilities of {', '.join(map(repr, self.continuations))} add up to {total:.3f}: the judge's "
                "tokens do not keep them apart",
                where="models.judge",
                hint="use another model as judge",
            )
        self._checked = True

    def ask(self, asked: Sequence[tuple[Exchange, str]]) -> list[Reading | None]:
        """One reading per (answer, question about it), in order."""
        if not asked:
            return []
        self.check()
        found: list[Reading | None] = [None] * len(asked)
        failures: dict[int, UnitFailure] = {}
        waiting = {i: exchange.prompt for i, (exchange, _) in enumerate(asked)}
        while waiting:
            inputs = {i: self._input(prompt, asked[i][0].response, asked[i][1]) for i, prompt in waiting.items()}
            ids = {given: str(number) for number, given in enumerate(dict.fromkeys(inputs.values()))}
            requests = [ScoreRequest(number, given, self.continuations) for given, number in ids.items()]
            scored = {scores.id: scores for scores in self.context.backend("judge").score(requests)}
            again = {}
            for i, prompt in waiting.items():
                scores = scored[ids[inputs[i]]]
                failure = unscored(scores)
                if failure is None:
                    probabilities, mass = over_options(scores.logprobs)
                    found[i] = Reading(tuple(probabilities), mass)
                elif failure.kind == "too_long" and (shorter := _later(prompt)):
                    again[i] = shorter
                else:
                    failures[i] = failure
            waiting = again
        self._judge_failures(asked, failures)
        return found

    def _judge_failures(self, asked: Sequence[tuple[Exchange, str]], failures: dict[int, UnitFailure]) -> None:
        for i, failure in failures.items():
            if failure.kind == "infra" or not self.tolerant:
                raise CAIError(
                    f"the judge could not rate the answer {asked[i][0].id!r} ({failure.kind}): {failure.message}",
                    where="models.judge",
                    hint="give the same command again when the judge is back"
                    if failure.kind == "infra"
                    else "set the reward model's option `unrated`, or use a judge with a longer context",
                )
        if failures:
            log.warning("%d of %d questions to the judge count as `unrated`", len(failures), len(asked))

    def _input(self, prompt: Conversation, response: str, question: str) -> ModelInput:
        text = (
            f"Consider the following conversation between a human and an assistant:{render_transcript(prompt)}\n\n"
            f"The assistant's response to it, in brackets:\n[[[{inside_brackets(response)}]]]\n\n{question}"
        )
        if self.form == "text":
            return ModelInput(text=f"{text}\n\n{self.prefill}")
        return ModelInput(messages=(Message("user", text),), prefill=self.prefill)


def _later(prompt: Conversation) -> Conversation:
    """The conversation from its second user turn on; empty where there is none."""
    users = [i for i, message in enumerate(prompt) if message.role == "user"]
    return prompt[users[1] :] if len(users) > 1 else ()
