"""``length``: words per answer. Judges and preference models like long answers; a change here explains others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cai_core.types.evaluator import EvalInput, EvalRow, EvalUnit, Metric
from cai_plugins.evaluators.measures import by_model, mean


class Length:
    """An ``Evaluator`` of the models' answers."""

    def units(self, given: EvalInput) -> Sequence[EvalUnit]:
        """One unit per answer."""
        return [EvalUnit(answer.prompt.id, answer.model, {"answer": answer.text}) for answer in given.answers]

    def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        """``words``: what white space separates."""
        for unit in units:
            yield EvalRow(unit.id, unit.model, {"words": len(str(unit.payload["answer"]).split())})

    def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
        """The mean number of words."""
        note = "Answers end at the token limit of the recipe at the latest."
        return [
            mean("length", "words per answer", model, mine, "words", unit="count", direction="none", note=note)
            for model, mine in by_model(rows).items()
        ]
