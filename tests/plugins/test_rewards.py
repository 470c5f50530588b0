"""Reward models: the loss against hand-computed values, learning in the right direction, save and load."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import Context, turns

from cai_core.errors import CAIError, UserError
from cai_core.testing.tiny import tiny_model
from cai_core.types.reward import Exchange, Preference
from cai_plugins._torch.losses import soft_bradley_terry
from cai_plugins.rewards.plugin import Pattern, PreferenceOptions, RulesOptions, make_preference, make_rules

GOOD, BAD = "Mix flour, water, salt and yeast.", "No way."
probability = st.floats(0, 1)
margin = st.floats(-20, 20)


def test_loss_by_hand() -> None:
    loss = soft_bradley_terry(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([0.3, 1.0, 0.0]))
    assert loss.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))])


@given(margin, probability)
def test_the_gradient_is_what_is_believed_less_what_is_labelled(m: float, p: float) -> None:
    x = torch.tensor([m], dtype=torch.float64, requires_grad=True)
    soft_bradley_terry(x, torch.tensor([p], dtype=torch.float64)).sum().backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(1 / (1 + math.exp(-m)) - p, abs=1e-12)


@given(margin, probability)
def test_swapping_the_answers_and_the_label_changes_nothing(m: float, p: float) -> None:
    there = soft_bradley_terry(torch.tensor([m], dtype=torch.float64), torch.tensor([p], dtype=torch.float64))
    back = soft_bradley_terry(torch.tensor([-m], dtype=torch.float64), torch.tensor([1 - p], dtype=torch.float64))
    assert there.item() == pytest.approx(back.item(), rel=1e-12, abs=1e-12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("reward") / "tiny")


def pairs(p_good: float, n: int = 12) -> list[Preference]:
    """The good answer is A in half of them."""
    found = []
    for i in range(n):
        a, b, p = (GOOD, BAD, p_good) if i % 2 else (BAD, GOOD, 1 - p_good)
        found.append(Preference(f"c{i}", turns(f"How do I bake bread {i}?"), a, b, p))
    return found


def difference(model: Path, folder: Path, p_good: float) -> float:
    options = PreferenceOptions(epochs=4, learning_rate=5e-3, helpful="none", heldout=0, lora=None, batch_size=4)
    reward = make_preference(options, Context(folder / "work"))
    reward.fit(model, pairs(p_good), folder / "out")
    good, bad = reward.score([Exchange("g", turns("Bread?"), GOOD), Exchange("b", turns("Bread?"), BAD)])
    return good - bad


def test_scores_follow_the_label_and_stop_where_it_is_as_sure(model: Path, tmp_path: Path) -> None:
    found = [difference(model, tmp_path / str(p), p) for p in (0.1, 0.5, 0.7, 0.95)]
    assert found == sorted(found), "monotone in the training signal"
    assert found[0] < -0.3
    assert found[3] > 0.3
    assert abs(found[1]) < 0.3
    # a soft label of 0.7 is learnt as logit(0.7) = 0.85 at most, not as certainty
    assert found[2] < 2 * math.log(0.7 / 0.3)


def test_saved_and_loaded_it_scores_the_same_and_batches_do_not_matter(model: Path, tmp_path: Path) -> None:
    options = PreferenceOptions(helpful="builtin", helpful_pairs=4, heldout=0.2)
    fitted = make_preference(options, Context(tmp_path / "a"))
    result = fitted.fit(model, pairs(0.8), tmp_path / "pm")
    assert result.metrics["comparisons_helpful"] == 3, "of four: the hash of its opening holds one out"
    assert result.metrics["heldout_n"] > 0
    exchanges = [Exchange(str(i), turns("Bread?"), "flour " * (1 + 7 * i)) for i in range(5)]
    loaded = make_preference(PreferenceOptions(token_budget=1), Context(tmp_path / "b"))
    loaded.load(tmp_path / "pm")
    assert loaded.score(exchanges) == pytest.approx(fitted.score(exchanges), abs=1e-5)
    again = make_preference(options, Context(tmp_path / "c"))
    again.load(tmp_path / "pm")
    assert again.score(exchanges) == fitted.score(exchanges)


def test_identical_answers_are_left_out_and_counted(model: Path, tmp_path: Path) -> None:
    same = Preference("s", turns("Bread?"), GOOD, GOOD, 0.9)
    reward = make_preference(PreferenceOptions(helpful="none", heldout=0), Context(tmp_path / "a"))
    result = reward.fit(model, [*pairs(0.9, 4), same], tmp_path / "pm")
    assert (result.metrics["comparisons"], result.metrics["comparisons_identical"]) == (4, 1)
    with pytest.raises(UserError, match="identical"):
        make_preference(PreferenceOptions(), Context(tmp_path / "b")).fit(model, [same], tmp_path / "pm2")


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_a_label_that_is_no_probability_is_refused(model: Path, tmp_path: Path, p: float) -> None:
    bad = Preference("bad", turns("Bread?"), GOOD, BAD, p)
    with pytest.raises(UserError, match="probability") as caught:
        make_preference(PreferenceOptions(), Context(tmp_path / "w")).fit(model, [bad], tmp_path / "pm")
    assert "'bad'" in str(caught.value.where)


def test_asked_before_it_learnt_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(CAIError, match="neither fitted nor loaded"):
        make_preference(PreferenceOptions(), Context(tmp_path)).score([Exchange("x", turns("a"), "b")])


def test_rules(tmp_path: Path) -> None:
    options = RulesOptions(patterns=(Pattern(regex="flour", weight=2), Pattern(regex="no way", weight=-1)))
    rules = make_rules(options, Context(tmp_path / "w"))
    assert rules.score([Exchange("g", turns("q"), GOOD), Exchange("b", turns("q"), BAD)]) == [2.0, -1.0]
    result = rules.fit(tmp_path, pairs(0.9, 4), tmp_path / "rules")
    assert result.metrics["agreement"] == 1.0
    other = make_rules(RulesOptions(), Context(tmp_path / "v"))
    other.load(tmp_path / "rules")
    assert other.score([Exchange("g", turns("q"), GOOD)]) == [2.0]
    with pytest.raises(ValueError, match="not a regular expression"):
        Pattern(regex="(", weight=1)
