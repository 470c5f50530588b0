"""The top of a report answers only what its numbers can answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cai_core.pipeline.headline import headline
from cai_core.testing.results import results


def given(
    metric: str,
    *,
    difference: float,
    conclusive: bool,
    direction: str = "higher",
    models: tuple[str, str] = ("base", "rl"),
) -> dict[str, Any]:
    found = copy.deepcopy(results())
    value = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 20, "failed": 0, "interval": ""}
    found["models"] = [{"name": name, "label": name} for name in models]
    found["metrics"] = [
        {
            "id": metric, "label": "the metric", "evaluator": "e", "direction": direction, "unit": "rate", "note": "",
            "values": dict.fromkeys(models, value),
        }
    ]  # fmt: skip
    row = {**found["comparisons"][0], "metric": metric, "a": models[0], "b": models[1], "difference": difference}
    found["comparisons"] = [row | {"conclusive": conclusive, "minimum_detectable": 0.3}]
    return found


def answer(found: dict[str, Any], question: str) -> tuple[str, str, str]:
    (entry,) = (entry for entry in headline(found) if entry["question"].startswith(question))
    return entry["answer"], entry["level"], entry["text"]


@pytest.mark.parametrize(
    ("metric", "direction", "difference", "conclusive", "says", "level"),
    [
        ("harm_score", "lower", -0.2, True, "Yes", "good"),
        ("harm_score", "lower", 0.2, True, "No: it is less harmless", "bad"),
        ("harm_score", "lower", -0.2, False, "Cannot be told at this size", "unsure"),
        ("hhh.harmless", "higher", 0.2, True, "Yes", "good"),
        ("preference_model.harmful", "higher", 0.2, True, "Yes, by the score it was trained on", "unsure"),
        ("length", "none", 0.2, True, "Not measured", "unsure"),
    ],
)
def test_is_it_more_harmless(
    metric: str, direction: str, difference: float, conclusive: bool, says: str, level: str
) -> None:
    found = given(metric, difference=difference, conclusive=conclusive, direction=direction)
    told, how, text = answer(found, "Is it more harmless?")
    assert (told, how) == (says, level)
    if not conclusive:
        assert "A true difference under 30.0 pp would often be missed" in text


def test_over_refusal_is_a_question_of_its_own() -> None:
    found = given("refusal.harmless", difference=0.2, conclusive=True, direction="lower")
    assert answer(found, "Does it refuse")[:2] == ("Yes", "bad")
    assert answer(found, "Is it more harmless?")[0] == "Not measured"


def test_ratings_without_items_differ_where_their_intervals_are_apart() -> None:
    found = given("pairwise.elo.harmless", difference=0, conclusive=False)
    found["comparisons"] = []
    value = {"n": 20, "failed": 0, "interval": ""}
    found["metrics"][0] |= {"unit": "score"}
    for low, says in ((130.0, "Yes"), (60.0, "Cannot be told at this size")):
        found["metrics"][0]["values"] = {
            "base": {**value, "value": 0.0, "low": -80.0, "high": 80.0},
            "rl": {**value, "value": 150.0, "low": low, "high": 200.0},
        }
        assert answer(found, "Is it more harmless?")[0] == says


def test_a_judge_at_chance_makes_nothing_sure() -> None:
    found = given("harm_score", difference=-0.2, conclusive=True, direction="lower")
    assert answer(found, "How sure")[1] == "bad"
    assert "is at chance" in answer(found, "How sure")[2]
    found["audit"]["verdict"] = "above chance"
    assert answer(found, "How sure")[:2] == ("As sure as one seed allows", "good")
    assert answer({**found, "audit": None}, "How sure")[1] == "unsure"


def test_what_is_missing_is_said() -> None:
    found = results()
    assert answer(found, "Is anything missing?")[:2] == ("Yes", "bad")
    assert answer({**found, "missing": []}, "Is anything missing?")[:2] == ("No", "good")


def test_a_run_that_trains_nothing() -> None:
    found = {**results(), "stages": [], "models": [], "metrics": [], "comparisons": []}
    assert answer(found, "What was trained?")[0] == "Nothing: this run trains no model"
    assert [entry["question"] for entry in headline(found)] == [
        "What was trained?", "How sure are we?", "Is anything missing?",
    ]  # fmt: skip
