"""``length``: words per answer, and answers that run in a loop. Judges and preference models like long answers, so that
a change here explains others; a loop is what is left of a model that was trained too far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cai_core.text.quality import repeats
from cai_core.types.evaluator import EvalInput, EvalRow, EvalUnit, Metric
from cai_plugins.evaluators.measures import by_model, mean, rate

GROUPS = {"harmful": ("red_team",), "harmless": ("helpful", "borderline")}


class Length:
    """An ``Evaluator`` of the models' answers."""

    def units(self, given: EvalInput) -> Sequence[EvalUnit]:
        """One unit per answer."""
        return [
            EvalUnit(answer.prompt.id, answer.model, {"answer": answer.text, "kind": answer.prompt.kind})
            for answer in given.answers
        ]

    def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        """``words``: what white space separates; ``characters``; ``loops``: 1 where the text repeats itself."""
        for unit in units:
            text = str(unit.payload["answer"])
            values = {"words": len(text.split()), "characters": len(text), "loops": float(repeats(text))}
            yield EvalRow(unit.id, unit.model, {**values, "kind": unit.payload["kind"]})

    def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
        """The mean number of words, by kind of prompt too, and the share of loops. Only the first and the last are
        compared over items, so that the correction for many comparisons stays fair to others."""
        note = "Answers end at the token limit of the recipe at the latest."
        metrics = []
        for model, mine in by_model(rows).items():
            metrics.append(
                mean("length", "words per answer", model, mine, "words", unit="count", direction="none", note=note)
            )
            for group, kinds in GROUPS.items():
                some = [row for row in mine if row.values.get("kind") in kinds]
                label = f"words per answer, {group} prompts"
                found = mean(f"length.{group}", label, model, some, "words", unit="count", direction="none", note=note)
                metrics.append(replace(found, per_item={}))
            note_loops = (
                "A word or sentence again and again, or more than 30 % of 4-grams seen before (8-grams of letters in "
                "scripts without spaces between words)."
            )
            label = "answers that run in a loop"
            metrics.append(rate("length.loops", label, model, mine, "loops", direction="lower", note=note_loops))
        return metrics
