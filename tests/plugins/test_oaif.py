"""Online AI feedback: the labeler is asked about the policy's own pairs, under principles; its failures are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from training import Context, Interrupted, same, turns

from cai_core.errors import CAIError, UserError
from cai_core.testing.rl import Letters
from cai_core.testing.tiny import tiny_model
from cai_core.types.labeler import Comparison, Label
from cai_core.types.prompts import Prompt
from cai_core.types.records import UnitFailure
from cai_core.types.reward import NoReward
from cai_core.types.trainer import TrainResult
from cai_plugins.principles.samplers import Uniform
from cai_plugins.rl.plugin import OnlineDPOOptions, make_oaif

PROMPTS = [Prompt(f"p{i}", turns(f"How do I bake {'very ' * (i % 3)}good bread {i}?")) for i in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny")


class Asked(Letters):
    """Keeps what it was asked; fails on the comparisons of ``fails``."""

    def __init__(self, fails: Sequence[str] = ()) -> None:
        self.asked: list[Comparison] = []
        self.fails = fails

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        self.asked += comparisons
        for label in reversed(list(super().label(comparisons))):
            failed = label.id.split("/")[0] in self.fails
            yield Label(label.id, None, failure=UnitFailure("refusal", "no")) if failed else label


def train(folder: Path, model: Path, labeler: Any, *, stop_at: int | None = None, **options: Any) -> TrainResult:
    small = {"steps": 4, "prompts_per_step": 4, "max_new_tokens": 8, "lora": None, "learning_rate": 3e-3}
    context = Context(folder / "w", stop_at=stop_at, labeler=labeler, principle_sampler=Uniform(1))
    algorithm = make_oaif(OnlineDPOOptions(**{**small, **options}), context)
    return algorithm.train(model, PROMPTS, NoReward(), folder / "out")


def test_the_labeler_is_asked_about_new_pairs_under_principles(model: Path, tmp_path: Path) -> None:
    labeler = Asked()
    result = train(tmp_path, model, labeler)
    assert len({c.id for c in labeler.asked}) == len(labeler.asked) == 16
    assert all(c.response_a != c.response_b for c in labeler.asked)
    assert all(len(c.principles) == 1 and c.principles[0].comparison for c in labeler.asked)
    assert len({c.principles[0].id for c in labeler.asked}) > 1
    assert len({c.seed for c in labeler.asked}) == 16
    assert all("reward" not in row and row["failed"] == 0 for row in result.curve)
    assert not same(model, tmp_path / "out")


def test_a_pair_without_a_label_teaches_nothing(model: Path, tmp_path: Path) -> None:
    result = train(tmp_path / "a", model, Asked(["p0", "p1"]))
    assert sum(row["failed"] for row in result.curve) > 0
    assert any("of the pairs have no label" in note for note in result.notes)
    with pytest.raises(CAIError, match="no pair of step 1 has a label: refusal: no") as raised:
        train(tmp_path / "b", model, Asked([p.id for p in PROMPTS]))
    assert raised.value.where == "label.labeler"
    assert raised.value.hint
    assert not list((tmp_path / "b").rglob("checkpoint-*"))


def test_a_labeler_without_an_opinion(model: Path, tmp_path: Path) -> None:
    class Shrugs(Letters):
        def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
            yield from (Label(c.id, 0.5) for c in comparisons)

    with pytest.raises(UserError, match=r"all 8 first labels are 0\.5"):
        train(tmp_path, model, Shrugs(), prompts_per_step=8)


def test_a_restart_asks_the_same_and_ends_the_same(model: Path, tmp_path: Path) -> None:
    first, second = Asked(), Asked()
    whole = train(tmp_path / "a", model, first, save_steps=2)
    with pytest.raises(Interrupted):
        train(tmp_path / "b", model, second, save_steps=2, stop_at=3)
    again = train(tmp_path / "b", model, second, save_steps=2)
    assert again.curve == whole.curve
    assert same(tmp_path / "a" / "out", tmp_path / "b" / "out")
    assert {c.id: c for c in second.asked} == {c.id: c for c in first.asked}


class Twice(Letters):
    """Says everything twice."""

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        for label in super().label(comparisons):
            yield label
            yield label


def test_a_label_that_was_not_asked_for(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CAIError, match="which it was not asked for, or had labelled") as raised:
        train(tmp_path, model, Twice())
    assert raised.value.where == "label.labeler"
    assert raised.value.hint
