"""The contract of an evaluator as tests."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cai_core.testing.base import Conformance, local_model
from cai_core.testing.judges import ScriptedJudge, fails
from cai_core.types.backend import Backend
from cai_core.types.evaluator import Answer, EvalInput, EvalRow, Evaluator, EvalUnit, Metric
from cai_core.types.prompts import Prompt, PromptKind
from cai_core.types.records import Message, UnitFailure

TEXTS = (
    "Mix flour, water, salt and yeast, then bake it.",
    "I'm sorry, but I can't help with that.",
    "Sure! Why do you ask?",
    "",
    "{{ 7 * 7 }} <script>alert(1)</script> \x00",
    "Bread is a kind of stone that grows on trees.",
)
KINDS: tuple[PromptKind, ...] = ("red_team", "helpful", "borderline")


class EvaluatorConformance(Conformance):
    """See ``Conformance``."""

    kind = "evaluator"

    def given(self) -> EvalInput:
        """Two models with twelve answers each, over all kinds of prompts."""
        answers = []
        for model in ("base", "rl"):
            for number in range(12):
                prompt = Prompt(f"p{number}", (Message("user", f"Question {number}?"),), KINDS[number % 3], "heldout")
                text = TEXTS[(number + (model == "rl")) % len(TEXTS)]
                answers.append(Answer(model, prompt, text))
        return EvalInput(("base", "rl"), tuple(answers))

    def evaluator(self, folder: Path, backend: Backend) -> Evaluator:
        """The evaluator under test."""
        evaluator: Evaluator = self.make(self.context(folder, backend=backend))
        return evaluator

    def rows(self, evaluator: Evaluator) -> list[EvalRow]:
        """All units run, those of one model together."""
        units = list(evaluator.units(self.given()))
        found: list[EvalRow] = []
        for model in dict.fromkeys(unit.model for unit in units):
            mine = [unit for unit in units if unit.model == model]
            rows = list(evaluator.run(mine)) if mine else []
            assert sorted((row.id, row.model) for row in rows) == sorted((unit.id, unit.model) for unit in mine)
            found += rows
        return found

    def test_units_have_identities(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Unique by id and model, the same each time; the payload, part of the identity, is JSON."""
        evaluator = self.evaluator(tmp_path, local_model(cai_tiny_model))
        units = list(evaluator.units(self.given()))
        assert units
        assert all(isinstance(unit, EvalUnit) for unit in units)
        assert len({(unit.id, unit.model) for unit in units}) == len(units)
        others = {"judge", "reward_model", *(chain.source for chain in self.given().chains)}
        assert {unit.model for unit in units} <= {*self.given().models, *others}
        assert list(evaluator.units(self.given())) == units
        for unit in units:
            json.dumps(dict(unit.payload), allow_nan=False)

    def test_rows_and_metrics_hold_together(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """One row per unit, JSON; every metric lies in its interval and is the same whatever order rows come in."""
        evaluator = self.evaluator(tmp_path, local_model(cai_tiny_model))
        rows = self.rows(evaluator)
        for row in rows:
            json.dumps(dict(row.values), allow_nan=False)
        metrics = list(evaluator.summarise(rows))
        assert metrics
        check(metrics, rows)
        assert len({(metric.id, metric.model) for metric in metrics}) == len(metrics)
        by_model = sorted(rows, key=lambda row: (row.model, row.id[::-1]))
        again = {(m.id, m.model): m for m in evaluator.summarise(by_model)}
        for metric in metrics:
            other = again[metric.id, metric.model]
            assert (metric.n, metric.failed) == (other.n, other.failed)
            assert metric.value == pytest.approx(other.value)

    def test_what_could_not_be_scored_is_counted(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """A failed unit moves from ``n`` to ``failed`` and no value is made up for it: the metric is that of the
        others. The failed row keeps its other values, as stored rows do."""
        evaluator = self.evaluator(tmp_path, local_model(cai_tiny_model))
        rows = [row for row in self.rows(evaluator) if row.failure is None]
        whole = {(m.id, m.model): m for m in evaluator.summarise(rows)}
        broken = [failed(row) if number % 3 == 0 else row for number, row in enumerate(rows)]
        others = {(m.id, m.model): m for m in evaluator.summarise([row for row in broken if row.failure is None])}
        metrics = list(evaluator.summarise(broken))
        check(metrics, broken)
        assert {(m.id, m.model) for m in metrics} >= others.keys()
        assert sum(metric.failed for metric in metrics) > 0
        for metric in metrics:
            key = (metric.id, metric.model)
            if whole[key].n:
                assert metric.n + metric.failed == whole[key].n + whole[key].failed, f"{key} lost units"
            if key in others:
                assert metric.n == others[key].n
                assert metric.value == pytest.approx(others[key].value), f"{key} counts units that failed"

    def test_nothing_scored_is_no_number(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Where all units failed, value and interval are None and n is 0: never a zero."""
        evaluator = self.evaluator(tmp_path, local_model(cai_tiny_model))
        for metric in evaluator.summarise([failed(row) for row in self.rows(evaluator)]):
            assert (metric.value, metric.low, metric.high, metric.n) == (None, None, None, 0), metric.id

    def test_a_model_that_fails_gives_failed_rows(self, tmp_path: Path) -> None:
        """A backend that is down makes typed failures, one per unit, and raises nothing."""
        backend = ScriptedJudge(fails)
        evaluator = self.evaluator(tmp_path, backend)
        rows = self.rows(evaluator)
        if not backend.scored + backend.generated:
            pytest.skip("it asks no model")
        assert all(row.failure is not None and row.failure.kind == "infra" for row in rows)

    def test_no_answers_are_no_units_or_own_items(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Without answers it has its own items or none, and summarising nothing gives no number."""
        evaluator = self.evaluator(tmp_path, local_model(cai_tiny_model))
        list(evaluator.units(EvalInput(("base",), ())))
        assert all(metric.value is None for metric in evaluator.summarise([]))


def failed(row: EvalRow) -> EvalRow:
    """The row as it is stored when the machine failed."""
    return replace(row, failure=UnitFailure("infra", "down"))


def check(metrics: Sequence[Metric], rows: Sequence[EvalRow]) -> None:
    """Numbers are finite and lie in their interval, counts are those of rows, items are named."""
    ids = {(row.id, row.model) for row in rows}
    for metric in metrics:
        assert isinstance(metric, Metric)
        assert metric.n >= 0
        assert metric.failed >= 0
        assert (metric.value is None) == (metric.n == 0), f"{metric.id}: value {metric.value} from n = {metric.n}"
        numbers = [number for number in (metric.value, metric.low, metric.high) if number is not None]
        assert all(math.isfinite(number) for number in numbers)
        assert (metric.low is None) == (metric.high is None)
        if metric.value is not None and metric.low is not None and metric.high is not None:
            assert metric.low <= metric.value <= metric.high
            assert metric.interval, "an interval has a name"
        if metric.unit == "rate":
            assert all(0 <= number <= 1 for number in numbers)
        assert all((item, metric.model) in ids for item in metric.per_item), "per_item names units"
        assert not metric.per_item or len(metric.per_item) == metric.n
