"""What all questions to a judge have in common: answers stay inside their brackets, and scores say something."""

from __future__ import annotations

import math

from cai_core.types.backend import Scores
from cai_core.types.records import UnitFailure


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
