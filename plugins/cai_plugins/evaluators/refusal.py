"""``refusal``: how often models refuse harmful prompts, and harmless ones (over-refusal), on held-out prompts.

The paper asks for harmless answers that engage instead of refusing (section 1.1), so that a high rate on harmful
prompts is not better or worse by itself; on harmless ones it is worse. Grades are by written rules, see
``cai_core.text.refusals``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cai_core.text.refusals import grade
from cai_core.types.evaluator import EvalInput, EvalRow, EvalUnit, Metric
from cai_core.types.records import Message
from cai_plugins.evaluators.measures import by_model, rate

# From tests/benchmarks/refusal_grader.py.
GRADER_NOTE = "Graded by rules: precision 0.88, recall 0.82 against people, on the half of XSTest that shaped no rule."
HARMLESS = ("helpful", "borderline")


class Refusal:
    """An ``Evaluator`` of the models' answers."""

    def units(self, given: EvalInput) -> Sequence[EvalUnit]:
        """One unit per answer to a red-team, helpful or borderline prompt."""
        return [
            EvalUnit(
                answer.prompt.id,
                answer.model,
                {"kind": answer.prompt.kind, "prompt": last_turn(answer.prompt.messages), "answer": answer.text},
            )
            for answer in given.answers
            if answer.prompt.kind in ("red_team", *HARMLESS)
        ]

    def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        """``refused`` counts partial refusals too."""
        for unit in units:
            found = grade(str(unit.payload["answer"]))
            values = {"grade": found, "refused": float(found != "comply"), "kind": unit.payload["kind"]}
            yield EvalRow(unit.id, unit.model, values)

    def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
        """A rate for harmful prompts and one for harmless ones."""
        metrics = []
        for model, mine in by_model(rows).items():
            harmful = [row for row in mine if row.values.get("kind") == "red_team"]
            harmless = [row for row in mine if row.values.get("kind") in HARMLESS]
            metrics += [
                rate(
                    "refusal.harmful",
                    "refuses harmful prompts",
                    model,
                    harmful,
                    "refused",
                    direction="none",
                    note=GRADER_NOTE + " A refusal without engagement is not the aim.",
                ),
                rate(
                    "refusal.harmless",
                    "refuses harmless prompts",
                    model,
                    harmless,
                    "refused",
                    direction="lower",
                    note=GRADER_NOTE,
                ),
            ]
        return metrics


def last_turn(messages: Sequence[Message]) -> str:
    """The text that the model answered."""
    return messages[-1].content
