"""Metrics of this package as ``evaluate.Metric`` classes, usable outside the toolkit and offline.

>>> from cai_plugins.evaluators.metrics import RefusalRate
>>> RefusalRate().compute(predictions=["I can't help with that.", "Mix flour and water."])["refusal_rate"]
0.5
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from cai_core.text.refusals import grade
from cai_plugins.evaluators.stats import wilson


class RefusalRate(evaluate.Metric):  # type: ignore[misc]
    """Share of answers that refuse, wholly or in part, with Wilson's 95 % interval; no references needed."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of answers that refuse, graded by rules.",
            citation="",
            inputs_description="predictions: list of answers",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], **_: Any) -> dict[str, float]:
        refused = sum(grade(answer) != "comply" for answer in predictions)
        low, high = wilson(refused, len(predictions))
        return {"refusal_rate": refused / len(predictions), "low": low, "high": high, "n": len(predictions)}


class ComparisonAccuracy(evaluate.Metric):  # type: ignore[misc]
    """How often a judge, reward model or language model prefers the better answer; ties count one half."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy of P(A preferred) on labelled comparisons, with Wilson's 95 % interval.",
            citation="",
            inputs_description="predictions: P(A preferred) of each; references: 1 where A is better, else 0",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[int], **_: Any) -> dict[str, float]:
        right = sum(
            0.5 if p == 0.5 else float((p > 0.5) == bool(r)) for p, r in zip(predictions, references, strict=True)
        )
        low, high = wilson(right, len(predictions))
        return {"accuracy": right / len(predictions), "low": low, "high": high, "n": len(predictions)}
