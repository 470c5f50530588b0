"""Metrics of this package as ``evaluate.Metric`` classes, usable outside the toolkit and offline.

>>> from cai_plugins.evaluators.metrics import RefusalRate
>>> RefusalRate().compute(predictions=["I can't help with that.", "Mix flour and water."])["refusal_rate"]
0.5
"""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate
import numpy as np

from cai_core.calibration import brier, calibration_error
from cai_core.text.refusals import grade
from cai_plugins.evaluators.bradley_terry import ELO, connected, ratings
from cai_plugins.evaluators.refusal import boilerplate
from cai_plugins.evaluators.stats import wilson


def _numbers(*given: list[float]) -> None:
    """Raises ``ValueError`` where there is none, or one is NaN: it would count as an answer that nobody gave."""
    if not given[0]:
        raise ValueError("there are no predictions")
    if any(math.isnan(value) for some in given for value in some):
        raise ValueError("a prediction or reference is not a number; leave out what could not be scored, and count it")


def _about(description: str, inputs: str, **columns: Any) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description=inputs, features=datasets.Features(columns)
    )


def _share(name: str, hits: float, n: int) -> dict[str, float]:
    """A rate with Wilson's interval."""
    low, high = wilson(hits, n)
    return {name: hits / n, "low": low, "high": high, "n": n}


class RefusalRate(evaluate.Metric):  # type: ignore[misc]
    """Share of answers that refuse, wholly or in part, with Wilson's 95 % interval; no references needed."""

    def _info(self) -> evaluate.MetricInfo:
        return _about(
            "Share of answers that refuse, graded by rules.",
            "predictions: list of answers",
            predictions=datasets.Value("string"),
        )

    def _compute(self, predictions: list[str], **_: Any) -> dict[str, float]:
        refused = sum(grade(answer) != "comply" for answer in predictions)
        return _share("refusal_rate", refused, len(predictions))


class ComparisonAccuracy(evaluate.Metric):  # type: ignore[misc]
    """How often a judge, reward model or language model prefers the better answer; ties count one half."""

    def _info(self) -> evaluate.MetricInfo:
        return _about(
            "Accuracy of P(A preferred) on labelled comparisons, with Wilson's 95 % interval.",
            "predictions: P(A preferred) of each; references: 1 where A is better, else 0",
            predictions=datasets.Value("float64"),
            references=datasets.Value("int64"),
        )

    def _compute(self, predictions: list[float], references: list[int], **_: Any) -> dict[str, float]:
        _numbers(predictions)
        right = sum(
            0.5 if p == 0.5 else float((p > 0.5) == bool(r)) for p, r in zip(predictions, references, strict=True)
        )
        return _share("accuracy", right, len(predictions))


class CalibrationError(evaluate.Metric):  # type: ignore[misc]
    """How well probabilities that A is preferred fit what was preferred: expected calibration error (Guo et al. 2017)
    over ten bins of the preferred side's probability, and the Brier score."""

    def _info(self) -> evaluate.MetricInfo:
        return _about(
            "Expected calibration error and Brier score of P(A preferred).",
            "predictions: P(A preferred) of each; references: 1 where A is better, else 0",
            predictions=datasets.Value("float64"),
            references=datasets.Value("float64"),
        )

    def _compute(self, predictions: list[float], references: list[float], **_: Any) -> dict[str, float | int | None]:
        _numbers(predictions, references)
        return {
            "calibration_error": calibration_error(predictions, references),
            "brier": brier(predictions, references),
            "n": len(predictions),
        }


class MultipleChoiceAccuracy(evaluate.Metric):  # type: ignore[misc]
    """How often the most probable option is a correct one, with Wilson's interval; equal ones share."""

    def _info(self) -> evaluate.MetricInfo:
        return _about(
            "Accuracy of the most probable option.",
            "predictions: log-probabilities of the options of each item; references: the correct options' places",
            predictions=datasets.Sequence(datasets.Value("float64")),
            references=datasets.Sequence(datasets.Value("int64")),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[int]], **_: Any) -> dict[str, float]:
        right = 0.0
        for logprobs, correct in zip(predictions, references, strict=True):
            _numbers(logprobs)
            best = {place for place, value in enumerate(logprobs) if value == max(logprobs)}
            right += len(best & set(correct)) / len(best)
        return _share("accuracy", right, len(predictions))


class EloRatings(evaluate.Metric):  # type: ignore[misc]
    """Bradley-Terry ratings in Elo points of who won against whom; the one that is named first in the data is 0."""

    def _info(self) -> evaluate.MetricInfo:
        return _about(
            "Bradley-Terry ratings on the Elo scale; a tie is half a win, one virtual tie per pair.",
            "predictions: 1 where `first` won, 0 where `second` did, 0.5 for a tie; first, second: their names",
            predictions=datasets.Value("float64"),
            first=datasets.Value("string"),
            second=datasets.Value("string"),
        )

    def _compute(self, predictions: list[float], first: list[str], second: list[str], **_: Any) -> dict[str, Any]:
        _numbers(predictions)
        names = list(dict.fromkeys(name for pair in zip(first, second, strict=True) for name in pair))
        wins = np.zeros((len(names), len(names)))
        for won, one, other in zip(predictions, first, second, strict=True):
            wins[names.index(one), names.index(other)] += won
            wins[names.index(other), names.index(one)] += 1 - won
        rated = connected(wins, 0)
        theta = ratings(wins[rated][:, rated])
        found = {names[place]: float(ELO * (value - theta[0])) for place, value in zip(rated, theta, strict=True)}
        return {"elo": {name: found.get(name) for name in names}, "n": len(predictions)}


class BoilerplateRate(evaluate.Metric):  # type: ignore[misc]
    """Share of answers with comforting boilerplate ("you are valued", section 4.3), with Wilson's interval."""

    def _info(self) -> evaluate.MetricInfo:
        return _about(
            "Share of answers with comforting boilerplate, found by rules.",
            "predictions: list of answers",
            predictions=datasets.Value("string"),
        )

    def _compute(self, predictions: list[str], **_: Any) -> dict[str, float]:
        found = sum(boilerplate(answer) for answer in predictions)
        return _share("boilerplate_rate", found, len(predictions))
