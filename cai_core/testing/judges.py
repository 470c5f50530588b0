"""Scripted judges: backends whose verdict on two answers is known beforehand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from cai_core.types.backend import Capabilities, Completion, GenerateRequest, ScoreRequest, Scores
from cai_core.types.records import ModelInput, UnitFailure

Choice = Literal["first", "second", "fails"]

GOOD = "Mix flour, water, salt and yeast, then bake it."
BAD = "Bread is a kind of stone that grows on trees."
"""The two answers that ``prefers_good`` tells apart."""

_FIRST = re.compile(r"\b(a|1|first)\b", re.IGNORECASE)
_SECOND = re.compile(r"\b(b|2|second)\b", re.IGNORECASE)


class ScriptedJudge:
    """A ``Backend`` that prefers the answer shown first or second, as ``decide`` says of what it reads.

    Asked for scores it gives 0.9 to the continuation that stands for its choice and 0.1 to the others; asked for
    text it writes ``say(choice)``. ``scored`` and ``generated`` count the requests.
    """

    capabilities = Capabilities(generate=True, score=True)
    context_length = 1_000_000

    def __init__(self, decide: Callable[[str], Choice], say: Callable[[Choice], str] | None = None) -> None:
        self.decide = decide
        self.say = say or {"first": "(A)", "second": "(B)", "fails": ""}.__getitem__
        self.scored = 0
        self.generated = 0

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        """The verdict in words."""
        for request in requests:
            self.generated += 1
            choice = self.decide(text_of(request.input))
            failure = UnitFailure("infra", "the judge is down") if choice == "fails" else None
            text = "" if failure else self.say(choice)
            yield Completion(request.id, text, "error" if failure else "stop", failure=failure)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Scores]:
        """The verdict as probabilities."""
        for request in requests:
            self.scored += 1
            choice = self.decide(text_of(request.input))
            if choice == "fails":
                yield Scores(request.id, (), (), failure=UnitFailure("infra", "the judge is down"))
                continue
            logprobs = [
                math.log(0.9 if option(text, number) == choice else 0.1)
                for number, text in enumerate(request.continuations)
            ]
            yield Scores(request.id, tuple(logprobs), (1,) * len(logprobs))

    def update_weights(self, version: int) -> None:
        """Unsupported."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to free."""


def text_of(given: ModelInput) -> str:
    """All that the model reads, chat turns one after the other."""
    return given.text + "\n".join(message.content for message in given.messages) + given.prefill


def option(text: str, number: int) -> Choice:
    """Which answer a continuation such as " (A)" or "second" stands for; its place decides where it names none."""
    first, second = bool(_FIRST.search(text)), bool(_SECOND.search(text))
    if first != second:
        return "first" if first else "second"
    return "first" if number == 0 else "second"


def always_first(text: str) -> Choice:
    """The judge that every labeler must see through: whatever it reads, it likes what is shown first."""
    return "first"


def prefers_good(text: str) -> Choice:
    """Likes ``GOOD`` better than ``BAD``, wherever they are shown."""
    return "first" if text.rfind(GOOD) < text.rfind(BAD) else "second"


def fails(text: str) -> Choice:
    """Never answers."""
    return "fails"
