"""The contract of a reward model as tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import pytest

from cai_core.errors import CAIError, UserError
from cai_core.testing.base import Conformance
from cai_core.testing.judges import BAD, GOOD
from cai_core.testing.training import check_result
from cai_core.types.records import Message
from cai_core.types.reward import Exchange, Preference, RewardModel

PROMPT = (Message("user", "How do I bake bread?"),)


class RewardModelConformance(Conformance):
    """See ``Conformance``. ``options`` must be enough to learn 24 comparisons of the same two answers.
    tolerance: how much a score may differ between batches."""

    kind = "reward_model"
    tolerance: ClassVar[float] = 1e-4

    def preferences(self, p_good: float) -> list[Preference]:
        """``GOOD`` against ``BAD``, A in every other one, each with the label ``p_good`` for the good one."""
        found = []
        for number in range(24):
            a, b, p = (GOOD, BAD, p_good) if number % 2 else (BAD, GOOD, 1 - p_good)
            prompt = (Message("user", f"How do I bake bread number {number}?"),)
            found.append(Preference(f"c{number}", prompt, a, b, p))
        return found

    def fitted(self, folder: Path, model: Path, p_good: float = 0.9) -> RewardModel:
        """A new reward model that learnt these labels; saved in ``folder/out``."""
        reward: RewardModel = self.make(self.context(folder / "work"))
        check_result(reward.fit(model, self.preferences(p_good), folder / "out"))
        return reward

    def answers(self) -> list[Exchange]:
        """Answers of different lengths, the empty one among them."""
        texts = (GOOD, BAD, "", "bread", "flour " * 40, "{{ 7 * 7 }} <b>")
        return [Exchange(f"x{number}", PROMPT, text) for number, text in enumerate(texts)]

    def test_scores_rise_with_the_label(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """The surer the labels that an answer is better, the higher it scores over the other: both ways."""
        margins = []
        for p_good in (0.05, 0.5, 0.95):
            reward = self.fitted(tmp_path / str(p_good), cai_tiny_model, p_good)
            good, bad = reward.score(self.answers()[:2])
            margins.append(good - bad)
        assert margins[0] < margins[1] < margins[2], margins
        assert margins[0] < 0 < margins[2], margins

    def test_one_finite_score_per_answer_in_order(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Whatever else is in the batch."""
        reward = self.fitted(tmp_path, cai_tiny_model)
        scores = reward.score(self.answers())
        assert len(scores) == len(self.answers())
        assert all(isinstance(score, float) and math.isfinite(score) for score in scores)
        assert reward.score(self.answers()[::-1]) == pytest.approx(scores[::-1], abs=self.tolerance)
        for answer, score in zip(self.answers(), scores, strict=True):
            assert reward.score([answer]) == pytest.approx([score], abs=self.tolerance)
        assert reward.score([]) == []

    def test_loaded_it_scores_as_it_did(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """``load`` of what ``fit`` saved gives equal scores, and no pickle was written."""
        reward = self.fitted(tmp_path, cai_tiny_model)
        loaded: RewardModel = self.make(self.context(tmp_path / "other"))
        loaded.load(tmp_path / "out")
        assert loaded.score(self.answers()) == reward.score(self.answers())
        names = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert names, "fit saves to its folder"
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]

    def test_asked_before_it_knows_anything_it_says_so(self, tmp_path: Path) -> None:
        """``score`` before ``fit`` or ``load`` is a ``CAIError``."""
        reward: RewardModel = self.make(self.context(tmp_path))
        with pytest.raises(CAIError):
            reward.score(self.answers())

    def test_a_label_that_is_no_probability_is_refused(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """NaN or a number outside [0, 1] is a ``UserError``, not a gradient."""
        for p in (math.nan, -0.1, 1.5):
            reward: RewardModel = self.make(self.context(tmp_path / "w"))
            bad = [*self.preferences(0.9), Preference("odd", PROMPT, GOOD, BAD, p)]
            with pytest.raises(UserError):
                reward.fit(cai_tiny_model, bad, tmp_path / "out")
