"""``calibration`` and ``revisions``: numbers and curves against independent computations, with scripted judges."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cai_core.types.evaluator import Chain, EvalInput, EvalRow
from cai_core.types.labeler import Comparison, Label
from cai_core.types.principles import Constitution, Principle
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message, UnitFailure
from cai_core.types.reward import Exchange
from cai_plugins.evaluators.calibration import Calibration
from cai_plugins.evaluators.plugin import CalibrationOptions, RevisionsOptions
from cai_plugins.evaluators.revisions import Revisions


class Reward:
    """Scores a text by the number that it begins with."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [float(e.response.split()[0]) for e in exchanges]


class Judge:
    """Is as sure as the answers say, and right or wrong as they say."""

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        for c in comparisons:
            p = 1 / (1 + math.exp(float(c.response_b.split()[0]) - float(c.response_a.split()[0])))
            yield Label(c.id, p)


class First:
    def sample(self, principles: Any, **_: Any) -> Any:
        return (principles[0],)


def calibration(data: Path, judge: str) -> tuple[list[EvalRow], dict[str, Any], Any]:
    parts = {"labeler": Judge(), "principle_sampler": First(), "reward_model": Reward()}
    principles = (Principle("p", comparison="Which is better?"),)
    context = SimpleNamespace(component=parts.__getitem__, constitution=Constitution("c", "1", "", principles))
    evaluator = Calibration(CalibrationOptions(data=data, judge=judge), context)  # type: ignore[arg-type]
    rows = list(evaluator.run(evaluator.units(EvalInput(("base",), ()))))
    return rows, {m.id: m for m in evaluator.summarise(rows)}, evaluator


@pytest.mark.parametrize("judge", ["labeler", "reward_model"])
@pytest.mark.parametrize("form", ["plain", "paper"])
def test_probabilities_are_compared_with_what_is_right(tmp_path: Path, judge: str, form: str) -> None:
    rng = random.Random(4)
    margins = [rng.uniform(-1, 3) for _ in range(200)]
    rows = [{"prompt": f"q{n}", "better": f"{m} yes", "worse": "0 no"} for n, m in enumerate(margins)]
    if form == "paper":
        start = "\n\nHuman: q{}\n\nAssistant:"
        rows = [
            {"text_correct": f"{start.format(n)} {m} yes", "text_incorrect": f"{start.format(n)} 0 no"}
            for n, m in enumerate(margins)
        ]
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    found, metrics, evaluator = calibration(data, judge)
    assert {row.model for row in found} == {"judge" if judge == "labeler" else "reward_model"}
    p = 1 / (1 + np.exp(-np.array(margins)))
    sure, right = np.maximum(p, 1 - p), p > 0.5
    bins = np.minimum(((sure - 0.5) * 20).astype(int), 9)
    error = sum(abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).sum() for b in set(bins)) / 200
    assert metrics["calibration.accuracy"].value == right.mean()
    assert metrics["calibration.brier"].value == pytest.approx(((1 - p) ** 2).mean())
    assert metrics["calibration.error"].value == pytest.approx(error)
    (curve,) = evaluator.curves(found)
    (series,) = curve.series
    assert curve.diagonal
    assert series.x == pytest.approx([sure[bins == b].mean() for b in sorted(set(bins))])
    assert series.y == pytest.approx([right[bins == b].mean() for b in sorted(set(bins))])
    assert series.n == tuple(int((bins == b).sum()) for b in sorted(set(bins)))
    assert all(low <= y <= high for low, y, high in zip(series.low, series.y, series.high, strict=True))


def test_another_folder_is_loaded_and_only_where_a_reward_model_is_measured() -> None:
    folders = []
    context = SimpleNamespace(reward_model=lambda folder: folders.append(folder) or Reward())
    Calibration(CalibrationOptions(judge="reward_model", reward_model=Path("x/model")), context)
    assert folders == [Path("x/model")]
    with pytest.raises(ValueError, match="measured only with"):
        CalibrationOptions(reward_model=Path("x"))


def chain(source: str, n: int, *scores: float, failure: UnitFailure | None = None) -> Chain:
    prompt = Prompt(f"p{n}", (Message("user", "q"),))
    principles = tuple("abcdefgh"[n % 3 : len(scores) - 1 + n % 3])
    return Chain(source, f"p{n}/0", prompt, tuple(f"{score} text" for score in scores), principles, failure)


def revisions(*chains: Chain) -> tuple[dict[tuple[str, str], Any], dict[str, Any], list[EvalRow]]:
    evaluator = Revisions(RevisionsOptions(), SimpleNamespace(component=lambda kind: Reward()))
    rows = list(evaluator.run(evaluator.units(EvalInput(("base",), (), chains))))
    metrics = {(m.id, m.model): m for m in evaluator.summarise(rows)}
    return metrics, {curve.id: curve for curve in evaluator.curves(rows)}, rows


def test_gains_are_paired_within_chains() -> None:
    scores = [(0.0, 1.0, 1.5), (2.0, 2.5, 3.5), (-1.0, 1.0, 0.5), (0.5, 1.0, 1.0)]
    metrics, curves, _ = revisions(*(chain("revise", n, *some) for n, some in enumerate(scores)))
    array = np.array(scores)
    for number in (1, 2):
        gains = array[:, number] - array[:, 0]
        metric = metrics[f"revisions.gain.{number}", "revise"]
        low, high = stats.t.interval(0.95, 3, loc=gains.mean(), scale=stats.sem(gains))
        assert (metric.value, metric.low, metric.high) == pytest.approx((gains.mean(), low, high))
    (series,) = curves["revisions.score"].series
    assert (series.name, series.x, series.n) == ("revise", (0, 1, 2), (4, 4, 4))
    assert series.y == pytest.approx(array.mean(0))
    (series,) = curves["revisions.by_principles"].series
    assert (series.x, series.n) == ((2,), (4,))


def test_chains_of_one_prompt_are_a_cluster() -> None:
    chains = [replace(chain("revise", n // 3, 0, 1 + n // 3), id=f"p{n // 3}/{n % 3}") for n in range(9)]
    metric = revisions(*chains)[0]["revisions.gain.1", "revise"]
    assert metric.interval == "Student's t 95 %, 3 clusters"
    assert (metric.low, metric.high) == pytest.approx(stats.t.interval(0.95, 2, 2, stats.sem([1, 2, 3])))


def test_branches_are_lines_and_broken_chains_are_counted() -> None:
    down = UnitFailure("infra", "down")
    metrics, curves, rows = revisions(
        chain("revise[critiqued]", 0, 0, 1, 2),
        chain("revise[critiqued]", 1, 0, 3, failure=down),
        chain("revise[critiqued]", 2, failure=down),
        chain("revise[direct]", 0, 0, 0.5, 0.5),
    )
    first, second = (metrics[f"revisions.gain.{n}", "revise[critiqued]"] for n in (1, 2))
    assert (first.value, first.n, first.failed) == (2.0, 2, 0)
    assert (second.value, second.n, second.failed) == (2.0, 1, 1)
    assert [s.name for s in curves["revisions.score"].series] == ["revise[critiqued]", "revise[direct]"]
    assert sum(row.failure is not None for row in rows) == 2
