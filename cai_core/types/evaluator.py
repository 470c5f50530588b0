"""Evaluators: models and their answers -> metrics with n and interval, and rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from cai_core.types.prompts import Prompt
from cai_core.types.records import UnitFailure


@dataclass(frozen=True, slots=True)
class Answer:
    """What ``model`` answered to a held-out prompt."""

    model: str
    prompt: Prompt
    text: str


@dataclass(frozen=True, slots=True)
class Chain:
    """An answer and its revisions (section 3.1). ``source``: the stage that made it ("revise", "revise[direct]").
    texts: the first answer, then each revision that there is. principles: the id drawn for each revision."""

    source: str
    id: str
    prompt: Prompt
    texts: tuple[str, ...]
    principles: tuple[str, ...]
    failure: UnitFailure | None = None


@dataclass(frozen=True, slots=True)
class EvalInput:
    """What there is to evaluate. ``models``: names in the order of the report ("base", "sft", "rl");
    ``context.backend(name)`` asks that model. ``answers``, ``chains`` and ``training`` (prompts that a model of the run
    learnt from) are there for evaluators that name them in ``reads`` of ``Component``."""

    models: tuple[str, ...]
    answers: tuple[Answer, ...]
    chains: tuple[Chain, ...] = ()
    training: tuple[Prompt, ...] = ()


@dataclass(frozen=True, slots=True)
class EvalUnit:
    """One item to score for one model. ``id`` is unique over items; with ``model`` it names the unit's row.
    ``model`` is one of ``EvalInput.models``, or for an evaluator of something else "judge" or "reward_model", or the
    ``source`` of a chain.
    ``payload`` (JSON) is part of the unit's identity: when it changes the unit is scored again. Its key ``answer`` is
    for what the model answered: items of two runs are compared where the rest of it is the same."""

    id: str
    model: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EvalRow:
    """The result of one unit: JSON values, or a failure."""

    id: str
    model: str
    values: Mapping[str, Any] = field(default_factory=dict)
    failure: UnitFailure | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One number for one model.

    value, low, high: the estimate and its interval, None when nothing could be scored. n: scored units.
    failed: units with a failure. interval: the interval's name, e.g. "Wilson 95 %".
    direction: which way is better; "none" where that depends. per_item: unit id -> value, for paired comparisons.
    cluster: unit id -> cluster id where items are not independent.
    """

    id: str
    label: str
    model: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    failed: int = 0
    interval: str = ""
    unit: Literal["rate", "score", "count"] = "rate"
    direction: Literal["higher", "lower", "none"] = "none"
    note: str = ""
    per_item: Mapping[str, float] = field(default_factory=dict)
    cluster: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a curve; all of the same length. low, high: 95 % intervals of ``y``, n: units behind each point;
    empty where there are none."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    n: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """Numbers along an axis for a report to draw. ``diagonal``: whether y = x is what is hoped for (calibration)."""

    id: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    note: str = ""
    diagonal: bool = False


@runtime_checkable
class HasCurves(Protocol):
    """What an evaluator may offer besides its metrics."""

    def curves(self, rows: Sequence[EvalRow]) -> Sequence[Curve]:
        """Curves from all rows; points with nothing to show are left out."""
        ...


class Evaluator(Protocol):
    """The pipeline asks for units, runs them in batches, stores each row, then asks for metrics.

    Named under ``label.audit`` of a recipe it is given the one model "judge" and no answers, and must report the metric
    ``audit.accuracy``; ``docs/reference/results.md`` lists what else a report shows of an audit.

    Order: rows come in any order, one per unit; metrics come in the order of the report, ids unique per model.
    Shapes and units: a metric is one number per model with its interval, ``n`` and ``failed``; a rate lies in [0, 1].
    Ownership: rows are stored and may come from an earlier run; the evaluator keeps none.
    Errors: a unit that cannot be scored is a row with a failure. ``summarise`` counts it in ``failed`` and never makes
    up a value; with nothing scored the value is None. Nothing is raised for one unit.
    Determinism: units and payloads are the same for the same input; metrics depend on the set of rows, not their order.
    """

    def units(self, given: EvalInput) -> Sequence[EvalUnit]:
        """All units, each with its own identity."""
        ...

    def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        """One row per unit, in any order, as they finish. All units of a call belong to one model."""
        ...

    def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
        """Metrics from all rows, stored ones included."""
        ...
