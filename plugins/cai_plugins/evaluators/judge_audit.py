"""``judge_audit``: is the labeler right more often than a coin, on comparisons with a known answer?

Keeps from the paper: the labeler is measured as a classifier of comparisons (section 4.1, Figures 4 and 9), with a
principle drawn for each. Adds what it lacks: both orders, flips, intervals, and the baseline "the longer one".
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from cai_core.calibration import calibration_error
from cai_core.errors import UserError
from cai_core.types.context import StageContext
from cai_core.types.evaluator import EvalInput, EvalRow, EvalUnit, Metric
from cai_core.types.labeler import Comparison
from cai_core.types.prompts import Prompt
from cai_plugins.evaluators.comparisons import better_is_b, clusters_of, read_counted, turns_of
from cai_plugins.evaluators.measures import by_model, mean, rate


class JudgeAudit:
    """An ``Evaluator`` of the run's labeler with the model in the role ``judge``."""

    def __init__(self, data: Path | None, limit: int | None, context: StageContext) -> None:
        self.source = data.name if data else "built-in comparisons"
        self.items, self.left_out = read_counted(data, limit)
        self.labeler = context.component("labeler")
        self.sampler = context.component("principle_sampler")
        self.principles = [p for p in context.constitution.principles if p.comparison]
        if not self.principles:
            raise UserError("no principle has a comparison text", where=f"constitution {context.constitution.id}")

    def units(self, given: EvalInput) -> Sequence[EvalUnit]:
        """One unit per item; the better answer is A or B by the hash of its id."""
        return [EvalUnit(item["id"], model, item) for model in given.models for item in self.items]

    def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        """Ask the labeler; ``p_better`` is the probability it gives to the better answer."""
        by_id = {unit.id: unit for unit in units}
        for label in self.labeler.label([self._comparison(unit) for unit in units]):
            unit = by_id[label.id]
            if label.failure or label.p_a is None:
                yield EvalRow(unit.id, unit.model, {}, label.failure)
                continue
            turned = better_is_b(unit.id)
            evidence = label.evidence
            better = 1 - label.p_a if turned else label.p_a
            values: dict[str, Any] = {"p_better": better, "right": 0.5 if better == 0.5 else float(better > 0.5)}
            if "p_a_first" in evidence and "p_a_second" in evidence:
                # p_a_first: A was shown first. The better answer was shown first in that order unless it is B.
                first, second = evidence["p_a_first"], evidence["p_a_second"]
                values["p_better_first"] = 1 - second if turned else first
                values["p_better_second"] = 1 - first if turned else second
            if "mass" in evidence:
                values["mass"] = evidence["mass"]
            yield EvalRow(unit.id, unit.model, values)

    def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
        """Accuracy with a Wilson interval (ties count one half), by category too; flips, mass, gap, length."""
        items = {item["id"]: item for item in self.items}
        note = f"{self.source}, {len(items)} comparisons, chance 50 %" + (f"; {self.left_out}" if self.left_out else "")
        cluster = clusters_of(self.items)
        metrics = []
        for model, mine in by_model(rows).items():
            metrics.append(_accuracy("", model, mine, note, cluster))
            for category in sorted({str(item["category"]) for item in items.values()}):
                some = [row for row in mine if items[row.id]["category"] == category]
                metrics.append(_accuracy(category, model, some, note, cluster))
            good = [row for row in mine if row.failure is None]
            failed = [row for row in mine if row.failure is not None]
            both = {r.id: r.values for r in good if "p_better_first" in r.values}
            flips = {i: float((v["p_better_first"] - 0.5) * (v["p_better_second"] - 0.5) < 0) for i, v in both.items()}
            longer = {row.id: _longer(items[row.id]) for row in good}
            # Ties and answers of one length tell nothing of what length does.
            follows = {
                row.id: float((longer[row.id] == 1.0) == (row.values["right"] == 1.0))
                for row in good
                if longer[row.id] != 0.5 and row.values["right"] != 0.5
            }
            masses = {row.id: float(row.values["mass"]) for row in good if "mass" in row.values}
            squares = {row.id: (1 - float(row.values["p_better"])) ** 2 for row in good}
            gaps = {row.id: abs(float(row.values["p_better"]) - 0.5) for row in good}
            for name, label, found in (
                ("flip_rate", "answers that change with the order", flips),
                ("length_baseline", "accuracy of preferring the longer answer", longer),
                ("longer_preferred", "the longer answer is preferred", follows),
            ):
                values = [*(EvalRow(item, model, {"value": value}) for item, value in found.items()), *failed]
                metrics.append(rate(f"audit.{name}", label, model, values, "value", direction="none", cluster=cluster))
            for name, label, found in (
                ("mass", "probability on the two options", masses),
                ("gap", "mean distance of the label from 0.5", gaps),
                ("brier", "Brier score (0.25: always one half)", squares),
            ):
                values = [*(EvalRow(item, model, {"value": value}) for item, value in found.items()), *failed]
                metrics.append(
                    mean(
                        f"audit.{name}", label, model, values, "value", unit="score", direction="none", cluster=cluster
                    )
                )
            p = [float(row.values["p_better"]) for row in good]
            error = calibration_error(p, [1.0] * len(p))
            name, label = "audit.calibration_error", "expected calibration error"
            metrics.append(Metric(name, label, model, error, None, None, len(p), len(failed), unit="score"))
        return metrics

    def _comparison(self, unit: EvalUnit) -> Comparison:
        item = unit.payload
        messages = turns_of(item)
        seed = int.from_bytes(sha256(f"audit/{unit.id}".encode()).digest()[:8], "big") >> 1
        rng = random.Random(seed)
        drawn = self.sampler.sample(
            self.principles, prompt=Prompt(unit.id, messages), step="comparison", index=0, rng=rng
        )
        first, second = str(item["better"]), str(item["worse"])
        if better_is_b(unit.id):
            first, second = second, first
        return Comparison(unit.id, messages, first, second, tuple(drawn), seed)


def _longer(item: dict[str, Any]) -> float:
    better, worse = len(item["better"]), len(item["worse"])
    return 0.5 if better == worse else float(better > worse)


def _accuracy(category: str, model: str, rows: Sequence[EvalRow], note: str, cluster: Mapping[str, str]) -> Metric:
    name, label = ("audit.accuracy", "judge accuracy")
    if category:
        name, label = f"{name}.{category}", f"{label}, {category}"
    return rate(name, label, model, rows, "right", direction="higher", note=note, cluster=cluster)
