"""What all questions to a judge have in common: answers stay inside their brackets, and scores say something."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cai_core.types.backend import Scores
from cai_core.types.records import UnitFailure

REASONINGS = 128
"""How many reasonings are made before they are read out and recorded, so that a crash loses no more. Our choice: twice
the widest batch of the ``transformers`` backend, and some minutes of a small model on a CPU."""


def inside_brackets(text: str) -> str:
    """An answer for a place between ``[[[`` and ``]]]``. One that closed the brackets could write options, a verdict or
    a rating of its own."""
    return text.replace("[[[", "[ [ [").replace("]]]", "] ] ]")


def unscored(scores: Scores) -> UnitFailure | None:
    """Why a judge's scores say nothing, if so: they failed, or are no finite log-probabilities."""
    if scores.failure:
        return scores.failure
    if not all(math.isfinite(value) for value in scores.logprobs):
        return UnitFailure("infra", "the judge's log-probabilities are not finite")
    return None


def over_options(logprobs: Sequence[float]) -> tuple[list[float], float]:
    """The options' probabilities, normalised to sum up to 1, and the probability that all of them have together.
    logprobs: finite, in nats."""
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights], math.exp(top) * total
