"""``ordinal``: which response does the judge call better, the first or the second?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cai_core.types.backend import ScoreRequest, Scores
from cai_core.types.context import StageContext
from cai_core.types.labeler import Comparison, Label
from cai_core.types.records import Message, ModelInput, UnitFailure

from cai_extras.plugin import OrdinalOptions


class Ordinal:
    """P(A preferred): softmax over the two words, averaged over both orders and all principles."""

    def __init__(self, options: OrdinalOptions, context: StageContext) -> None:
        self.words = (f" {options.first}", f" {options.second}")
        self.context = context

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        """All questions go to the judge in one call, so that it can batch them."""
        requests = []
        for number, comparison in enumerate(comparisons):
            for which, principle in enumerate(comparison.principles):
                for order in (0, 1):
                    question = self._question(comparison, principle.comparison, order)
                    requests.append(ScoreRequest(f"{number}/{which}/{order}", question, self.words))
        answers: dict[int, list[tuple[int, Scores]]] = {number: [] for number in range(len(comparisons))}
        if requests:
            for scores in self.context.backend("judge").score(requests):
                number_text, _, order_text = scores.id.split("/")
                answers[int(number_text)].append((int(order_text), scores))
        for number, comparison in enumerate(comparisons):
            yield self._label(comparison, answers[number])

    def _question(self, comparison: Comparison, principle: str, order: int) -> ModelInput:
        shown = (comparison.response_a, comparison.response_b)[:: -1 if order else 1]
        asked = "\n".join(f"{message.role}: {message.content}" for message in comparison.prompt)
        text = f"{asked}\n\nFirst response: {shown[0]}\n\nSecond response: {shown[1]}\n\n{principle}"
        return ModelInput(messages=(Message("user", text),), prefill="The better response is the")

    def _label(self, comparison: Comparison, answers: Sequence[tuple[int, Scores]]) -> Label:
        if not answers:
            return Label(comparison.id, None, failure=UnitFailure("unparseable", "no principle was given"))
        by_order: dict[int, list[float]] = {0: [], 1: []}
        for order, scores in answers:
            if scores.failure:
                return Label(comparison.id, None, failure=scores.failure)
            first, second = scores.logprobs
            # P(first) - P(second); in the second order the first response is B.
            by_order[order].append(math.tanh((first - second) / 2) * (-1 if order else 1))
        # Summed per order and then added: the swapped comparison has the same two sums, so that p and 1 - p match.
        margin = (math.fsum(by_order[0]) + math.fsum(by_order[1])) / len(answers)
        evidence = {
            "p_a_first": 0.5 + math.fsum(by_order[0]) / len(by_order[0]) / 2,
            "p_a_second": 0.5 + math.fsum(by_order[1]) / len(by_order[1]) / 2,
            "tokens_in": sum(scores.tokens_in for _, scores in answers),
        }
        return Label(comparison.id, min(1.0, max(0.0, 0.5 + margin / 2)), evidence)
