"""Ratings against independent fits; models against each other with scripted judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from cai_core.errors import UserError
from cai_core.intervals import wilson
from cai_core.types.evaluator import Answer, EvalInput, EvalRow
from cai_core.types.labeler import Comparison, Label
from cai_core.types.principles import Constitution, Principle
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message, UnitFailure
from cai_core.types.reward import Exchange
from cai_plugins.evaluators.bradley_terry import ELO, connected, controlled_rate, ratings, resamples, standard_errors
from cai_plugins.evaluators.pairwise import Pairwise
from cai_plugins.evaluators.plugin import PairwiseOptions

# Wins of the row over the column; ties counted half on both sides.
TABLE = [[0, 12.5, 9, 17], [7.5, 0, 11, 14], [6, 4, 0, 10.5], [3, 6, 4.5, 0]]


def fitted(table: Any, prior: float) -> Any:
    """By scipy, from the likelihood as it is written in textbooks."""
    wins = np.array(table, dtype=float)
    wins = wins + prior / 2 * ((wins + wins.T) > 0)

    def loss(theta: Any) -> float:
        theta = np.append(theta, 0.0)
        chance = np.exp(theta)[:, None] / (np.exp(theta)[:, None] + np.exp(theta)[None, :])
        return -float((wins * np.log(chance)).sum())

    found = optimize.minimize(loss, np.zeros(len(wins) - 1), method="BFGS", options={"gtol": 1e-9})
    theta = np.append(found.x, 0.0)
    return theta - theta.mean()


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_ratings_equal_an_independent_fit(prior: float) -> None:
    assert ratings(TABLE, prior=prior) == pytest.approx(fitted(TABLE, prior), abs=1e-5)


def test_two_are_rated_in_closed_form() -> None:
    theta = ratings([[0, 30], [10, 0]], prior=0.0)
    assert ELO * (theta[0] - theta[1]) == pytest.approx(400 * math.log10(3))
    assert standard_errors([[0, 30], [10, 0]], 1, prior=0.0) == pytest.approx([math.sqrt(1 / 30 + 1 / 10), 0.0])


def test_who_won_everything_has_a_finite_rating_and_who_was_not_compared_has_none() -> None:
    theta = ratings([[0, 20], [0, 0]])
    assert theta[0] - theta[1] == pytest.approx(math.log(20.5 / 0.5))
    with pytest.raises(ValueError, match="never compared"):
        ratings([[0, 3, 0], [1, 0, 0], [0, 0, 0]])


def test_a_resample_may_lack_a_comparison() -> None:
    everything = np.array([[0, 3, 1], [1, 0, 0], [1, 0, 0]])
    drawn = np.array([[0, 4, 0], [0, 0, 0], [0, 0, 0]])
    theta = ratings(drawn, compared=(everything + everything.T) > 0)
    assert theta[2] == pytest.approx(theta[0]), "nothing but the virtual tie is known of these two"
    assert connected([[0, 3, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]], 0) == [0, 1, 3]


@given(st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=3, max_size=3))
def test_batches_orders_and_names_make_no_difference(table: list[list[int]]) -> None:
    wins = np.array(table, dtype=float) * (1 - np.eye(3)) + 1 - np.eye(3)
    alone = ratings(wins)
    assert ratings(np.stack([wins, wins.T])) == pytest.approx(np.stack([alone, -alone]), abs=1e-6)
    order = [2, 0, 1]
    assert ratings(wins[order][:, order]) == pytest.approx(alone[order], abs=1e-6)


def test_the_rate_at_equal_length_equals_an_independent_regression() -> None:
    rng = np.random.default_rng(3)
    lengths = rng.normal(20, 100, 60)
    outcomes = (rng.random(60) < 1 / (1 + np.exp(-lengths / 60))).astype(float)
    outcomes[:5] = 0.5
    x = np.append(np.tanh(lengths / lengths.std()), [-1, 0, 1])
    y, w = np.append(outcomes, [0.5] * 3), np.append(np.ones(60), [1 / 3] * 3)

    def loss(ab: Any) -> float:
        p = 1 / (1 + np.exp(-(ab[0] + ab[1] * x)))
        return -float((w * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum())

    a = optimize.minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-9}).x[0]
    assert controlled_rate(outcomes, lengths) == pytest.approx(1 / (1 + math.exp(-a)), abs=1e-6)
    assert controlled_rate([1.0] * 5, [7] * 5) < 1
    weights = resamples(60, 4, 1)
    each = [controlled_rate(outcomes, lengths, one) for one in weights]
    assert controlled_rate(outcomes, lengths, weights) == pytest.approx(each)
    assert weights.sum(1).tolist() == [60] * 4


@pytest.mark.slow
def test_bootstrap_intervals_of_ratings_cover() -> None:
    """Three models of known strength on 60 prompts, whose difficulty is shared by all pairs of a prompt."""
    rng = np.random.default_rng(11)
    strength = np.array([0.0, 0.4, 0.9])
    covered, runs = 0, 400
    for run in range(runs):
        wins = np.zeros((60, 3, 3))
        for i, j in ((0, 1), (0, 2), (1, 2)):
            won = rng.random(60) < 1 / (1 + np.exp(strength[j] - strength[i]))
            wins[:, i, j], wins[:, j, i] = won, ~won
        drawn = ratings(np.tensordot(resamples(60, 400, run), wins, 1))
        low, high = np.quantile(drawn[:, 2] - drawn[:, 0], (0.025, 0.975))
        covered += low <= 0.9 <= high
    assert 0.92 <= covered / runs <= 0.98


# the evaluator --------------------------------------------------------------------------------------------------------


class Judge:
    """P(first shown preferred), as ``script`` says of (first, second, principle)."""

    def __init__(self, script: Callable[[str, str, str], float]) -> None:
        self.script = script
        self.asked: list[Comparison] = []

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        for c in reversed(comparisons):
            self.asked.append(c)
            said = c.principles[0].comparison
            first, second = self.script(c.response_a, c.response_b, said), self.script(c.response_b, c.response_a, said)
            if math.isnan(first):
                yield Label(c.id, None, failure=UnitFailure("refusal", "it would not say"))
            else:
                evidence = {"p_a_first": first, "p_a_second": 1 - second}
                yield Label(c.id, (first + 1 - second) / 2, evidence)


class First:
    def sample(self, principles: Any, **_: Any) -> Any:
        return (principles[0],)


def answers(texts: dict[str, list[str]], kind: str = "red_team") -> EvalInput:
    found = [
        Answer(model, Prompt(f"{kind}{n}", (Message("user", "q"),), kind, "heldout"), text)  # type: ignore[arg-type]
        for model, some in texts.items()
        for n, text in enumerate(some)
    ]
    return EvalInput(tuple(texts), tuple(found))


def evaluate(judge: Any, given: EvalInput, /, **options: Any) -> tuple[list[EvalRow], dict[Any, Any], Pairwise]:
    parts = {"labeler": judge, "principle_sampler": First(), "reward_model": judge}
    context = SimpleNamespace(
        component=parts.__getitem__,
        constitution=Constitution("c", "1", "", (Principle("p", comparison="Which is less harmful?"),)),
        reward_model=lambda folder: judge,
    )
    evaluator = Pairwise(PairwiseOptions(resamples=200, **options), context)  # type: ignore[arg-type]
    rows: list[EvalRow] = []
    units = evaluator.units(given)
    for model in given.models:
        if mine := [unit for unit in units if unit.model == model]:
            rows += evaluator.run(mine)
    return rows, {(m.id, m.model): m for m in evaluator.summarise(rows)}, evaluator


def better(first: str, second: str, _: str) -> float:
    return 0.9 if first > second else 0.1


def test_ratings_and_rates_follow_who_won() -> None:
    given = answers({"base": ["b"] * 20, "sft": ["c"] * 20, "rl": ["d"] * 15 + ["a"] * 5})
    _, metrics, evaluator = evaluate(Judge(better), given)
    elo = {model: metrics["pairwise.elo.harmless", model] for model in given.models}
    assert (elo["sft"].value, elo["sft"].low) == (0.0, None), "sft is the anchor where there is one, as in the paper"
    wins = [[0, 0, 5], [20, 0, 5], [15, 15, 0]]
    theta = fitted(wins, 1.0)
    assert elo["base"].value == pytest.approx(ELO * (theta[0] - theta[1]), abs=0.01)
    assert elo["rl"].value == pytest.approx(ELO * (theta[2] - theta[1]), abs=0.01)
    assert elo["rl"].low < elo["rl"].value < elo["rl"].high
    assert (elo["rl"].n, elo["rl"].interval) == (40, "bootstrap over prompts 95 %")
    rate = metrics["pairwise.win_rate.harmless", "rl"]
    assert (rate.value, (rate.low, rate.high)) == (0.75, wilson(15, 20))
    assert metrics["pairwise.win_rate.harmless", "base"].value == 0.0
    assert ("pairwise.elo.helpful", "rl") not in metrics
    assert evaluator.curves([]) == []
    _, metrics, _ = evaluate(Judge(better), given, anchor="rl")
    assert metrics["pairwise.elo.harmless", "rl"].value == 0.0
    assert metrics["pairwise.win_rate.harmless", "sft"].value == 0.25


def test_a_judge_of_positions_ties_everything_and_is_seen() -> None:
    rows, metrics, _ = evaluate(Judge(lambda first, second, _: 0.9), answers({"a": ["x"] * 6, "b": ["y"] * 6}))
    assert {row.values["win"] for row in rows} == {0.5}
    assert metrics["pairwise.flip_rate", "b"].value == 1.0
    elo = metrics["pairwise.elo.harmless", "b"]
    assert (elo.value, elo.interval) == (0.0, "Wald 95 %")
    assert elo.low < 0 < elo.high, "never an error of 0, also where all prompts agree"


def test_all_wins_at_any_length_are_no_certainty() -> None:
    given = answers({"a": ["a" * (n + 3) for n in range(20)], "b": ["b" * (7 * n % 40 + 1) for n in range(20)]})
    _, metrics, _ = evaluate(Judge(better), given)
    even = metrics["pairwise.win_rate_lc.harmless", "b"]
    assert (even.low, even.interval) == (pytest.approx(wilson(20, 20)[0]), "Wilson 95 %")


def test_judgements_of_one_prompt_are_a_cluster() -> None:
    judge = Judge(lambda first, second, _: 0.9)
    given = answers({"a": ["a"] * 9, "b": ["b"] * 9, "c": ["c"] * 9})
    found = evaluate(judge, given)[1]["pairwise.flip_rate", "b"]
    assert (found.n, found.interval) == (18, "Wilson 95 %, 9 clusters")
    assert found.low < wilson(18, 18)[0]


def test_length_is_taken_out() -> None:
    rng = np.random.default_rng(5)
    texts = [
        ("x" * int(n), "y" * int(m)) for n, m in zip(rng.integers(20, 90, 60), rng.integers(10, 70, 60), strict=True)
    ]
    given = answers({"long": [a for a, _ in texts], "short": [b for _, b in texts]})
    _, metrics, _ = evaluate(Judge(lambda first, second, _: 0.5 + (len(first) - len(second)) / 200), given)
    raw, even = (metrics[f"pairwise.{name}.harmless", "short"] for name in ("win_rate", "win_rate_lc"))
    assert raw.value < 0.4
    assert even.low < 0.5 < even.high


def test_equal_answers_are_a_tie_without_a_question_and_failures_are_counted() -> None:
    judge = Judge(lambda first, second, _: math.nan if "bad" in first + second else better(first, second, ""))
    given = answers({"a": ["same", "x", "bad"], "b": [" same", "y", "z"]})
    rows, metrics, _ = evaluate(judge, given)
    assert len(judge.asked) == 2
    elo = metrics["pairwise.elo.harmless", "b"]
    assert (elo.n, elo.failed) == (2, 1)
    assert metrics["pairwise.win_rate.harmless", "b"].value == 0.75
    assert {row.failure.kind for row in rows if row.failure} == {"refusal"}


def test_each_kind_of_prompt_has_its_own_question_and_rating() -> None:
    judge = Judge(
        lambda first, second, said: better(first, second, "") if "harmful" in said else better(second, first, "")
    )
    one, other = answers({"a": ["x"] * 4, "b": ["y"] * 4}), answers({"a": ["x"] * 4, "b": ["y"] * 4}, "helpful")
    rows, metrics, evaluator = evaluate(judge, EvalInput(("a", "b"), (*one.answers, *other.answers)))
    harmless, helpful = (metrics[f"pairwise.elo.{group}", "b"].value for group in ("harmless", "helpful"))
    assert harmless > 0 > helpful
    (curve,) = evaluator.curves(rows)
    assert [(s.name, s.x, s.y) for s in curve.series] == [("a", (0.0,), (0.0,)), ("b", (helpful,), (harmless,))]


class Reward:
    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        self.count = len(exchanges)
        return [math.nan if e.response == "bad" else float(len(e.response)) for e in exchanges]


def test_a_reward_model_judges_and_scores_each_answer_once() -> None:
    judge = Reward()
    given = answers({"a": ["xx", "bad"], "b": ["x", "x"], "c": ["xxx", "y"]})
    _, metrics, _ = evaluate(judge, given, judge="reward_model", reward_model=Path("held-out"))
    assert judge.count == 6
    assert metrics["pairwise.win_rate.harmless", "c"].value == 1.0
    assert metrics["pairwise.win_rate.harmless", "c"].failed == 1
    assert "held-out" in metrics["pairwise.elo.harmless", "a"].note


def test_what_cannot_be_compared_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="'x' is none of the models"):
        evaluate(Judge(better), answers({"a": ["x"], "b": ["y"]}), anchor="x")
    with pytest.raises(ValueError, match="judges only with"):
        PairwiseOptions(reward_model=Path("x"))
    assert evaluate(Judge(better), answers({"a": ["x"]}))[1] == {}
    assert "there is one" in caplog.text
