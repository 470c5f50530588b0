"""The contract of a labeler as tests, with the judges that labelers of other toolkits fall for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from cai_core.testing.base import Conformance, local_model
from cai_core.testing.context import PRINCIPLES
from cai_core.testing.judges import BAD, GOOD, Choice, ScriptedJudge, always_first, fails, prefers_good
from cai_core.testing.verdicts import VERDICTS
from cai_core.types.backend import Backend
from cai_core.types.labeler import GIVEN, Comparison, Label, Labeler
from cai_core.types.records import Message

QUESTIONS = ("How do I bake bread?", "What goes into a loaf?", "Can you explain bread to me?")


class LabelerConformance(Conformance):
    """See ``Conformance``. letters: what a verdict calls the answer shown first and second.
    verdicts: odd verdicts and what may be made of them, for labelers whose judge answers in words (see
    ``cai_core.testing.verdicts``)."""

    kind = "labeler"
    letters: ClassVar[tuple[str, str]] = ("A", "B")
    verdicts: ClassVar[Sequence[tuple[str, str]]] = VERDICTS

    def comparisons(self) -> list[Comparison]:
        """``GOOD`` is A in the first and B in the second, and so on."""
        found = []
        for number, question in enumerate(QUESTIONS):
            a, b = (GOOD, BAD) if number % 2 == 0 else (BAD, GOOD)
            found.append(Comparison(f"c{number}", (Message("user", question),), a, b, PRINCIPLES[:1], 50 + number))
        return found

    def labels(self, folder: Path, comparisons: Sequence[Comparison], judge: Backend) -> dict[str, Label]:
        """The labels of a new labeler, by id."""
        labeler: Labeler = self.make(self.context(folder, backend=judge))
        found = list(labeler.label(comparisons))
        assert sorted(label.id for label in found) == sorted(c.id for c in comparisons), "one label per comparison"
        for label in found:
            check(label)
        return {label.id: label for label in found}

    def scripted(self, decide: Callable[[str], Choice]) -> ScriptedJudge:
        """A judge that answers in this labeler's letters."""
        return ScriptedJudge(decide, lambda choice: f"({self.letters[0 if choice == 'first' else 1]})")

    def test_one_label_per_comparison(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """From a real model: each label is a probability or a typed failure, and its evidence is JSON."""
        judge = local_model(cai_tiny_model)
        self.labels(tmp_path, self.comparisons(), judge)
        assert self.labels(tmp_path, [], judge) == {}

    def test_swapping_the_answers_gives_one_minus_p(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """A and B are names. With a real model, which prefers a position as small models do."""
        there = self.comparisons()
        back = [replace(c, response_a=c.response_b, response_b=c.response_a) for c in there]
        for judge in (local_model(cai_tiny_model), self.scripted(prefers_good)):
            first, second = self.labels(tmp_path, there, judge), self.labels(tmp_path, back, judge)
            for name, label in first.items():
                other = second[name]
                if label.p_a is None or other.p_a is None:
                    assert label.p_a is other.p_a, "one order failed and the other has a label"
                else:
                    assert label.p_a + other.p_a == pytest.approx(1.0, abs=1e-5)

    def test_a_judge_that_says_first_decides_nothing(self, tmp_path: Path) -> None:
        """Its label is exactly 0.5, or a typed failure: position is not preference."""
        judge = self.scripted(always_first)
        found = self.labels(tmp_path, self.comparisons(), judge)
        self._must_have_asked(judge)
        for label in found.values():
            assert label.p_a is None or label.p_a == 0.5, f"p_a = {label.p_a} from a judge that always says 'first'"

    def test_the_label_follows_the_judge(self, tmp_path: Path) -> None:
        """A judge that knows the better answer, wherever it is shown, is believed."""
        judge = self.scripted(prefers_good)
        found = self.labels(tmp_path, self.comparisons(), judge)
        self._must_have_asked(judge)
        for comparison in self.comparisons():
            label = found[comparison.id]
            assert label.p_a is not None, label.failure
            better = label.p_a if comparison.response_a == GOOD else 1 - label.p_a
            assert better > 0.5, f"{comparison.id}: the judge prefers the answer that got {better}"

    def test_a_judge_that_fails_gives_no_label(self, tmp_path: Path) -> None:
        """A failed request is a failure with the judge's kind, never 0.5."""
        judge = self.scripted(fails)
        found = self.labels(tmp_path, self.comparisons(), judge)
        self._must_have_asked(judge)
        for label in found.values():
            assert label.p_a is None
            assert label.failure is not None
            assert label.failure.kind == "infra"

    def test_verdicts_are_read_or_refused_and_never_guessed(self, tmp_path: Path) -> None:
        """The table of odd verdicts: a plain one is read, an odd one is never read as its opposite, and a tie, a
        refusal or an unreadable one is a typed failure."""
        assert len(self.verdicts) >= 40, "a table of at least 40 verdicts"
        wrong = []
        for template, meaning in self.verdicts:
            judge = ScriptedJudge(prefers_good, self._writer(template))
            comparison = self.comparisons()[0]
            label = self.labels(tmp_path, [comparison], judge)[comparison.id]
            if not judge.generated:
                pytest.skip("its judge is not asked for words")
            if judge.scored:
                pytest.skip("letters are scored after what its judge writes")
            if label.p_a is None:
                if meaning == "read":
                    wrong.append(f"{template!r} was not read")
                elif label.failure is None or label.failure.kind not in ("unparseable", "refusal"):
                    wrong.append(f"{template!r} failed as {label.failure}, not as unparseable or refusal")
            elif meaning == "none":
                wrong.append(f"{template!r} became the label {label.p_a}")
            elif label.p_a <= 0.5:
                wrong.append(f"{template!r} was read as its opposite")
        assert not wrong, "\n".join(wrong)

    def test_a_label_depends_on_its_comparison_alone(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Alone, in company, in another order and asked again it is the same up to rounding."""
        judge = local_model(cai_tiny_model)
        together = self.labels(tmp_path, self.comparisons(), judge)
        backwards = self.labels(tmp_path, self.comparisons()[::-1], judge)
        for comparison in self.comparisons():
            alone = self.labels(tmp_path, [comparison], judge)[comparison.id]
            for other in (together[comparison.id], backwards[comparison.id]):
                if alone.p_a is None:
                    assert other.p_a is None
                else:
                    assert other.p_a == pytest.approx(alone.p_a, abs=1e-5)

    def test_equal_answers_are_a_tie(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Nothing can be preferred to itself."""
        comparison = replace(self.comparisons()[0], response_b=GOOD)
        label = self.labels(tmp_path, [comparison], local_model(cai_tiny_model))[comparison.id]
        assert label.p_a is None or label.p_a == pytest.approx(0.5, abs=1e-5)

    def _writer(self, template: str) -> Callable[[Choice], str]:
        first, second = self.letters
        # The rows without {x} speak of (A) and (B): in this labeler's letters.
        text = template.replace("(A)", f"({first})").replace("(B)", f"({second})")

        def say(choice: Choice) -> str:
            x, y = (first, second) if choice == "first" else (second, first)
            return text.format(x=x, y=y) if "{x}" in text else text

        return say

    def _must_have_asked(self, judge: ScriptedJudge) -> None:
        if not judge.scored + judge.generated:
            pytest.skip("it asks no judge")


def check(label: Label) -> None:
    """A label is a probability or a failure, never both and never neither; its evidence is JSON."""
    assert isinstance(label, Label)
    assert (label.p_a is None) == (label.failure is not None), f"{label.id}: p_a {label.p_a}, {label.failure}"
    if label.p_a is not None:
        assert math.isfinite(label.p_a)
        assert 0 <= label.p_a <= 1
    json.dumps(dict(label.evidence), allow_nan=False)
    assert GIVEN not in label.evidence, f"{label.id}: the evidence {GIVEN!r} is kept for what the pairs' file says"
