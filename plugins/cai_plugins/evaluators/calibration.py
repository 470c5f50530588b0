"""``calibration``: do probabilities of the labeler, or of a reward model, mean what they say? (Figure 9 of the paper.)

On comparisons with a known answer: how often the preferred answer is the better one, by how sure the judge was. A
reward model's probability is sigmoid(r - r'), as it was trained (Bradley-Terry).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cai_core.calibration import BINS, calibration_error
from cai_core.types.context import StageContext
from cai_core.types.evaluator import Curve, EvalInput, EvalRow, EvalUnit, Metric, Series
from cai_core.types.records import UnitFailure
from cai_core.types.reward import Exchange
from cai_plugins.evaluators.comparisons import clusters_of, read_counted, turns_of
from cai_plugins.evaluators.judge_audit import JudgeAudit
from cai_plugins.evaluators.measures import by_model, mean, rate
from cai_plugins.evaluators.plugin import CalibrationOptions


class Calibration:
    """An ``Evaluator`` of the judge. Its units belong to "judge" or "reward_model", whatever models there are."""

    def __init__(self, options: CalibrationOptions, context: StageContext) -> None:
        self.items, left_out = read_counted(options.data, options.limit)
        self.model = "judge" if options.judge == "labeler" else "reward_model"
        source = options.data.name if options.data else "built-in comparisons"
        self.note = f"{source}, {len(self.items)} comparisons, chance 50 %" + (f"; {left_out}" if left_out else "")
        if options.judge == "labeler":
            self.audit = JudgeAudit(options.data, options.limit, context)
        else:
            folder = options.reward_model
            self.reward = context.reward_model(folder) if folder else context.component("reward_model")

    def units(self, given: EvalInput) -> Sequence[EvalUnit]:
        """One unit per comparison."""
        return [EvalUnit(item["id"], self.model, item) for item in self.items]

    def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        """``p_better``: the probability given to the better answer; ``right``: 1, 0, or 0.5 where that is one half."""
        if self.model == "judge":
            yield from self.audit.run(units)
            return
        exchanges = [
            Exchange(f"{n}/{side}", turns_of(unit.payload), str(unit.payload[side]))
            for n, unit in enumerate(units)
            for side in ("better", "worse")
        ]
        scores = self.reward.score(exchanges)
        for n, unit in enumerate(units):
            margin = scores[2 * n] - scores[2 * n + 1]
            if not math.isfinite(margin):
                failure = UnitFailure("infra", "a score is not a finite number")
                yield EvalRow(unit.id, unit.model, {}, failure)
                continue
            p = 1 / (1 + math.exp(-margin)) if margin > -700 else 0.0
            right = 0.5 if margin == 0 else float(margin > 0)
            yield EvalRow(unit.id, unit.model, {"p_better": p, "right": right, "margin": margin})

    def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
        """Accuracy, Brier score and expected calibration error."""
        cluster = clusters_of(self.items)
        metrics = []
        for model, mine in by_model(rows).items():
            label = "prefers the better answer"
            metrics.append(
                rate(
                    "calibration.accuracy",
                    label,
                    model,
                    mine,
                    "right",
                    direction="higher",
                    note=self.note,
                    cluster=cluster,
                )
            )
            squared = [replace(r, values={"value": (1 - r.values.get("p_better", 0)) ** 2}) for r in mine]
            label = "Brier score (0.25: always one half)"
            metrics.append(
                mean(
                    "calibration.brier",
                    label,
                    model,
                    squared,
                    "value",
                    unit="score",
                    direction="lower",
                    cluster=cluster,
                )
            )
            p = [float(row.values["p_better"]) for row in mine if row.failure is None]
            error = calibration_error(p, [1.0] * len(p))
            note = f"{BINS} bins of the confidence; of few items it is too high, also where the probabilities are true."
            label, failed = "expected calibration error", len(mine) - len(p)
            metrics.append(
                Metric("calibration.error", label, model, error, None, None, len(p), failed, "", "score", "lower", note)
            )
        return metrics

    def curves(self, rows: Sequence[EvalRow]) -> Sequence[Curve]:
        """Per bin of the confidence (probability of the preferred answer): its mean, and how often it is right."""
        cluster = clusters_of(self.items)
        series = []
        for model, mine in by_model(rows).items():
            bins: dict[int, list[EvalRow]] = {}
            for row in mine:
                if row.failure is None:
                    confidence = max(row.values["p_better"], 1 - row.values["p_better"])
                    bins.setdefault(min(int((confidence - 0.5) * 2 * BINS), BINS - 1), []).append(row)
            points = []
            for _, some in sorted(bins.items()):
                sure = [max(row.values["p_better"], 1 - row.values["p_better"]) for row in some]
                found = rate("", "", model, some, "right", direction="none", cluster=cluster)
                points.append((math.fsum(sure) / len(sure), found.value or 0.0, found.low, found.high, found.n))
            if points:
                x, y, low, high, n = zip(*points, strict=True)
                series.append(Series(model, x, y, low, high, n))
        if not series:
            return []
        title = "How often the judge is right, by how sure it is"
        labels = ("probability of the preferred answer", "share of right preferences")
        return [Curve("calibration.reliability", title, *labels, tuple(series), self.note, diagonal=True)]
