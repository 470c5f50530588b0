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


WON = {
    "confirmed at equal length": ((0.7, 0.6, 0.8), (0.65, 0.55, 0.75), "Yes", "good"),
    "the other one at equal length": ((0.7, 0.6, 0.8), (0.3, 0.1, 0.52), "Yes, but not at equal length", "unsure"),
    "open at equal length": ((0.7, 0.6, 0.8), (0.6, 0.45, 0.7), "Yes, but at equal length it cannot be told", "unsure"),
    "unknown at equal length": ((0.7, 0.6, 0.8), None, "Yes, but nothing is known at equal length", "unsure"),
    "lost": ((0.3, 0.2, 0.4), (0.35, 0.25, 0.45), "No: it is less harmless", "bad"),
    "lost by length": ((0.3, 0.2, 0.4), (0.5, 0.4, 0.6), "No: it is less harmless, but not at equal length", "unsure"),
    "open": ((0.55, 0.45, 0.65), (0.7, 0.6, 0.8), "Cannot be told at this size", "unsure"),
}


def rated(name: str, **values: tuple[float, float, float] | None) -> dict[str, Any]:
    known = {
        model: {"value": v[0], "low": v[1], "high": v[2], "n": 80, "failed": 0, "interval": ""}
        for model, v in values.items()
        if v
    }
    return {
        "id": name, "label": name, "evaluator": "pairwise", "direction": "higher", "unit": "rate", "note": "",
        "values": known,
    }  # fmt: skip


@pytest.mark.parametrize("case", WON)
def test_a_win_rate_is_told_with_the_one_at_equal_length(case: str) -> None:
    raw, controlled, says, level = WON[case]
    found = given("length", difference=0, conclusive=False, direction="none")
    found["metrics"] = [
        rated("pairwise.win_rate.harmless", rl=raw),
        rated("pairwise.win_rate_lc.harmless", rl=controlled),
        # The same judgements once more: no second witness, and nothing to disagree with.
        rated("pairwise.elo.harmless", base=(0, -1, 1), rl=(90, 80, 100)),
    ]
    told, how, text = answer(found, "Is it more harmless?")
    assert (told, how) == (says, level)
    assert f"{100 * raw[0]:.1f} % [{100 * raw[1]:.1f}, {100 * raw[2]:.1f}]" in text
    assert ("at equal length" in text) == (controlled is not None)
    assert "elo" not in text


def test_a_win_rate_against_another_model_is_not_one_against_the_first() -> None:
    found = given("length", difference=0, conclusive=False, direction="none")
    found["metrics"] = [
        rated("pairwise.win_rate.harmless", base=(0.2, 0.1, 0.3), rl=(0.5, 0.4, 0.6)),
        rated("pairwise.elo.harmless", base=(-90, -100, -80), rl=(0, -10, 10)),
    ]
    told, _, text = answer(found, "Is it more harmless?")
    assert told == "Yes"
    assert "elo" in text
    assert "win_rate" not in text


def test_the_score_that_was_trained_on_does_not_take_away_the_doubt_about_length() -> None:
    found = given("preference_model.harmful", difference=0.2, conclusive=True)
    found["metrics"] += [
        rated("pairwise.win_rate.harmless", rl=(0.7, 0.6, 0.8)),
        rated("pairwise.win_rate_lc.harmless", rl=(0.3, 0.2, 0.4)),
    ]
    assert answer(found, "Is it more harmless?")[:2] == ("Yes, but not at equal length", "unsure")
    found["metrics"][0] |= {"id": "harm_score", "direction": "higher"}
    found["comparisons"][0] |= {"metric": "harm_score"}
    assert answer(found, "Is it more harmless?")[:2] == ("Yes", "good")


def test_of_branches_each_end_is_told() -> None:
    found = given("harm_score", difference=-0.2, conclusive=True, direction="lower")
    parents = {"base": None, "sft": "base", "rl@20[a]": "sft", "rl[a]": "rl@20[a]", "rl[b]": "sft", "rl[c]": "sft"}
    found["models"] = [{"name": name, "label": name, "parent": parent} for name, parent in parents.items()]
    changed = {"sft": 0.3, "rl@20[a]": 0.3, "rl[a]": -0.2, "rl[b]": 0.2, "rl[c]": -0.2}
    row = found["comparisons"][0]
    found["comparisons"] = [row | {"b": name, "difference": by} for name, by in changed.items()]
    told, how, text = answer(found, "Is it more harmless?")
    assert (told, how) == ("rl[a], rl[c]: Yes;\nrl[b]: No: it is less harmless", "bad")
    assert [name for name in changed if f"for {name} against base" in text] == ["rl[a]", "rl[b]", "rl[c]"]
    del found["comparisons"][3]
    assert answer(found, "Is it more harmless?")[:2] == ("rl[a], rl[c]: Yes;\nrl[b]: Not measured", "unsure")
    found["comparisons"] = [row | {"b": name, "difference": -0.2} for name in changed]
    assert answer(found, "Is it more harmless?")[:2] == ("Yes", "good")
    found["comparisons"] = [row | {"b": name, "conclusive": False} for name in changed]
    told, _, text = answer(found, "Is it more harmless?")
    assert told == "Cannot be told at this size"
    assert text.count("would often be missed") == 1, "said once, and not of each branch"
    assert [line.split(" against")[0][-5:] for line in text.splitlines()[:3]] == ["rl[a]", "rl[b]", "rl[c]"]


def test_a_base_model_may_stand_after_what_was_trained_from_it() -> None:
    found = given("harm_score", difference=0.2, conclusive=True, direction="lower", models=("rl", "base"))
    found["models"][0]["parent"] = "base"
    assert answer(found, "Is it more harmless?")[:2] == ("No: it is less harmless", "bad")
