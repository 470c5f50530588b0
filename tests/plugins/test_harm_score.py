"""``harm_score`` and its regressor, against closed forms."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModel, AutoTokenizer

from cai_core.errors import UserError
from cai_core.testing import TestContext
from cai_core.testing.tiny import tiny_model
from cai_core.types.backend import ScoreRequest, Scores
from cai_core.types.evaluator import Answer, EvalInput
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message, UnitFailure
from cai_plugins.evaluators.harm_score import HarmScore
from cai_plugins.evaluators.plugin import HarmScoreOptions
from cai_plugins.evaluators.regressor import _features, _ridge, fit
from cai_plugins.evaluators.states import States

GIVEN = EvalInput(
    ("m",),
    tuple(
        Answer("m", Prompt(f"p{n}", (Message("user", "q"),), "red_team", "heldout"), text)
        for n, text in enumerate(("fine", "awful ]]] 0", "down"))
    ),
)


def labelled(count: int, noise: float = 0.0) -> list[dict[str, Any]]:
    rng = random.Random(2)
    rows = []
    for n in range(count):
        bad = rng.randrange(5)
        words = ["awful"] * bad + ["fine"] * (4 - bad) + [f"word{rng.randrange(50)}" for _ in range(6)]
        rating = bad if rng.random() >= noise else rng.randrange(5)
        rows.append({"prompt": f"question {n}", "answer": " ".join(words), "rating": rating})
    return rows


def test_ridge_regression_is_its_closed_form() -> None:
    rows = labelled(60)
    x, y = _features([row["answer"] for row in rows]), np.array([float(row["rating"]) for row in rows])
    weights, constant = _ridge(x, y, 0.7)
    augmented = np.hstack([x, np.ones((60, 1))])
    penalty = 0.7 * np.eye(x.shape[1] + 1)
    penalty[-1, -1] = 0  # the constant is not penalised
    expected = np.linalg.solve(augmented.T @ augmented + penalty, augmented.T @ y)
    assert weights == pytest.approx(expected[:-1], abs=1e-6)
    assert constant == pytest.approx(expected[-1])


def test_it_says_on_texts_kept_out_whether_it_learnt_anything() -> None:
    rows = labelled(400)
    learnt = fit([row["answer"] for row in rows], [row["rating"] for row in rows])
    assert learnt.n + learnt.heldout == 400
    assert learnt.r2 > 0.8
    low, high = learnt.predict(["fine fine fine fine", "awful awful awful awful"])
    assert 0 <= low < 1 < 3 < high <= 4
    noise = labelled(400, noise=1.0)
    assert fit([row["answer"] for row in noise], [row["rating"] for row in noise]).r2 < 0.1
    with pytest.raises(ValueError, match="at least 20"):
        fit(["a"] * 30, [1.0] * 30)


def test_a_labelled_file_makes_the_score(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(map(json.dumps, labelled(200))))
    evaluator = HarmScore(HarmScoreOptions(data=data), SimpleNamespace())
    rows = {row.id: row for row in evaluator.run(evaluator.units(GIVEN))}
    assert rows["p1"].values["harm"] > rows["p0"].values["harm"]
    (harmful, harmless) = evaluator.summarise(list(rows.values()))
    assert (harmful.id, harmful.n, harmless.value) == ("harm_score.harmful", 3, None)
    assert "R2" in harmful.note


def test_hidden_states_are_read_text_by_text_and_carry_what_words_do(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    context = TestContext(tmp_path / "w")
    states = States(folder, context)
    texts = [row["answer"] for row in labelled(30)] + ["", "x <|im_end|> y"]
    found = states(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    for number in (0, 7):
        ids = tokenizer(texts[number], return_tensors="pt").input_ids
        expected = model(input_ids=ids).last_hidden_state[0].mean(0).detach().numpy()
        assert found[number] == pytest.approx(expected, abs=1e-5), "padding and company do not matter"
    assert np.isfinite(found).all()
    rows = labelled(200)
    learnt = fit([row["answer"] for row in rows], [row["rating"] for row in rows], states)
    assert learnt.r2 > 0.5, "even a random model's states tell how often a word is there"
    low, high = learnt.predict(["fine fine fine fine", "awful awful awful awful"])
    assert low < high
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    evaluator = HarmScore(HarmScoreOptions(data=data, features=folder), context)
    (harmful, _) = evaluator.summarise(list(evaluator.run(evaluator.units(GIVEN))))
    assert "hidden states of tiny" in harmful.note
    with pytest.raises(UserError, match="model"):
        HarmScore(HarmScoreOptions(data=data, features=tmp_path / "w"), context)
    with pytest.raises(ValidationError, match="which needs `data`"):
        HarmScoreOptions(features=folder)


def test_a_judge_gives_the_expected_rating_and_fails_alone() -> None:
    class Judge:
        def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Scores]:
            for request in reversed(requests):
                text = request.input.messages[0].content
                assert text.count("]]]") == 1, "an answer stays inside its brackets"
                p = [0.1, 0.1, 0.1, 0.3, 0.2] if "awful" in text else [0.4, 0.1, 0.0001, 0.0001, 0.0001]
                failure = UnitFailure("infra", "down") if "down" in text else None
                yield Scores(request.id, () if failure else tuple(map(math.log, p)), (), failure=failure)

    evaluator = HarmScore(HarmScoreOptions(), SimpleNamespace(backend=lambda role: Judge()))
    rows = {row.id: row for row in evaluator.run(evaluator.units(GIVEN))}
    assert rows["p1"].values["harm"] == pytest.approx((0.1 + 0.2 + 0.9 + 0.8) / 0.8)
    assert rows["p1"].values["mass"] == pytest.approx(0.8)
    assert rows["p2"].failure is not None
    assert evaluator.summarise(list(rows.values()))[0].failed == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rating": 1}, "neither `transcript` nor"),
        ({"transcript": "x", "rating": 5}, "from 0 to 4"),
        ({"transcript": "x", "rating": True}, "from 0 to 4"),
        ({"transcript": "x"}, "from 0 to 4"),
        ([], "neither"),
    ],
)
def test_bad_labels_are_told_with_their_line(tmp_path: Path, row: Any, message: str) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"transcript": "x", "rating": 1}) + "\n" + json.dumps(row))
    with pytest.raises(UserError, match=message) as caught:
        HarmScore(HarmScoreOptions(data=data), SimpleNamespace())
    assert "line 2" in str(caught.value.where)
