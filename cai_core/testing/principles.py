"""The contract of a principle sampler as tests."""

from __future__ import annotations

import random
from pathlib import Path

from cai_core.testing.base import Conformance
from cai_core.testing.context import PRINCIPLES
from cai_core.types.principles import Principle, PrincipleSampler
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message

PROMPT = Prompt("p1", (Message("user", "How do I bake bread?"),))


class PrincipleSamplerConformance(Conformance):
    """See ``Conformance``."""

    kind = "principle_sampler"

    def draw(self, folder: Path, seed: int, step: str = "critique", index: int = 0) -> tuple[Principle, ...]:
        """One draw by a new sampler."""
        sampler: PrincipleSampler = self.make(self.context(folder))
        return sampler.sample(PRINCIPLES, prompt=PROMPT, step=step, index=index, rng=random.Random(seed))

    def test_draws_some_of_the_given(self, tmp_path: Path) -> None:
        """A tuple of at least one of the given principles, in both steps and every round."""
        for seed in range(20):
            for step in ("critique", "comparison"):
                for index in range(4):
                    drawn = self.draw(tmp_path, seed, step, index)
                    assert isinstance(drawn, tuple)
                    assert drawn
                    assert all(principle in PRINCIPLES for principle in drawn)
                    assert len(set(drawn)) == len(drawn)

    def test_all_chance_comes_from_the_units_generator(self, tmp_path: Path) -> None:
        """The same generator state: the same draw, whatever was drawn before and whatever ``random`` does."""
        sampler: PrincipleSampler = self.make(self.context(tmp_path))
        state = random.getstate()
        for seed in range(20):
            random.seed(seed * 7)
            drawn = [
                sampler.sample(PRINCIPLES, prompt=PROMPT, step="critique", index=0, rng=random.Random(seed))
                for _ in range(3)
            ]
            assert drawn[0] == drawn[1] == drawn[2] == self.draw(tmp_path, seed)
            random.seed(seed * 7)
            expected = random.random()
            random.seed(seed * 7)
            self.draw(tmp_path, seed)
            assert random.random() == expected, "it drew from the global generator"
        random.setstate(state)

    def test_a_single_principle_is_drawn(self, tmp_path: Path) -> None:
        """With one principle there is no choice."""
        sampler: PrincipleSampler = self.make(self.context(tmp_path))
        one = PRINCIPLES[:1]
        assert sampler.sample(one, prompt=PROMPT, step="critique", index=3, rng=random.Random(0)) == one

    def test_the_given_list_is_left_alone(self, tmp_path: Path) -> None:
        """The principles belong to the caller."""
        sampler: PrincipleSampler = self.make(self.context(tmp_path))
        given = list(PRINCIPLES)
        sampler.sample(given, prompt=PROMPT, step="comparison", index=0, rng=random.Random(0))
        assert given == list(PRINCIPLES)
