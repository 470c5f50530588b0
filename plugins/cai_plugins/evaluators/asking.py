"""What evaluators of answers have in common: a unit for each answer, and a judge asked about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cai_core.text.judging import unscored
from cai_core.types.backend import Backend, ScoreRequest, Scores
from cai_core.types.evaluator import EvalInput, EvalUnit
from cai_core.types.records import ModelInput, UnitFailure


def answer_units(given: EvalInput) -> list[EvalUnit]:
    """One unit per answer, with its whole conversation."""
    return [
        EvalUnit(
            answer.prompt.id,
            answer.model,
            {
                "kind": answer.prompt.kind,
                "messages": [message.as_dict() for message in answer.prompt.messages],
                "answer": answer.text,
            },
        )
        for answer in given.answers
    ]


def judged(
    judge: Backend, units: Sequence[EvalUnit], questions: Sequence[ModelInput], options: tuple[str, ...]
) -> Iterator[tuple[EvalUnit, UnitFailure | None, Scores]]:
    """Each unit with the judge's scores of ``options`` after its question, or why they say nothing; as they come."""
    requests = [ScoreRequest(str(n), question, options) for n, question in enumerate(questions)]
    for scores in judge.score(requests):
        yield units[int(scores.id)], unscored(scores), scores
