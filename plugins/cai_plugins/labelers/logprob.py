"""Labels from the log-probabilities of " (A)" and " (B)" (Bai et al. 2022, section 4.1, without chain of thought)."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from cai_core.errors import UserError
from cai_core.text.judging import unscored
from cai_core.types.backend import ScoreRequest, Scores
from cai_core.types.context import StageContext
from cai_core.types.labeler import Comparison, Label
from cai_core.types.principles import ComparisonShot, Principle
from cai_core.types.records import Conversation, Message, ModelInput
from cai_plugins.labelers.plugin import LogprobOptions
from cai_plugins.labelers.questions import (
    LETTERS,
    check_letters,
    combined,
    few_shots,
    margin,
    mass,
    question_text,
    shown_in,
    unjudgeable,
)

PREFIX = "The answer is:"


class LogprobLabeler:
    """P(A preferred) = softmax over the two letters, averaged over both orders and over the given principles.

    Swapping A and B gives exactly 1 - p where the backend gives equal requests equal scores. A judge that always
    prefers one position gives exactly 0.5. A failed request fails its comparison, with the same kind.
    """

    def __init__(self, options: LogprobOptions, context: StageContext) -> None:
        self.options = options
        self.context = context
        self.shots = context.constitution.few_shots.comparisons or few_shots()
        if options.shots > len(self.shots):
            raise UserError(
                f"{options.shots} worked comparisons are asked for and there are {len(self.shots)}",
                where="labeler.shots",
                hint=f"give `shots` a number up to {len(self.shots)}",
            )
        self.shot_principles = [p for p in context.constitution.principles if p.comparison]
        self.checked = False

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        """See ``Labeler``. All requests go to the judge in one call, so that they share batches and prefixes."""
        asked: list[ScoreRequest] = []
        waiting: dict[str, int] = {}
        by_id = {str(number): comparison for number, comparison in enumerate(comparisons)}
        for number, comparison in by_id.items():
            if failed := unjudgeable(comparison):
                yield failed
                continue
            orders = (0, 1) if self.options.swap else (self._only_order(comparison),)
            shots = self._shots(comparison)
            for index, principle in enumerate(comparison.principles):
                for order in orders:
                    question = self._question(comparison.prompt, shown_in(comparison, order), principle, shots)
                    asked.append(ScoreRequest(f"{number}/{index}/{order}", question, LETTERS))
            waiting[number] = len(comparison.principles) * len(orders)
        if not asked:
            return
        judge = self.context.backend("judge")
        if not self.checked:
            check_letters(judge, asked[0].input)
            self.checked = True
        scored: dict[str, dict[tuple[int, int], Scores]] = defaultdict(dict)
        for scores in judge.score(asked):
            number, index, order_text = scores.id.split("/")
            scored[number][int(index), int(order_text)] = scores
            if len(scored[number]) == waiting[number]:
                yield self._label(by_id[number], scored.pop(number))

    def _label(self, comparison: Comparison, scored: dict[tuple[int, int], Scores]) -> Label:
        evidence: dict[str, object] = {"tokens_in": sum(scores.tokens_in for scores in scored.values())}
        for _, scores in sorted(scored.items()):
            if failure := unscored(scores):
                return Label(comparison.id, None, evidence, failure)
        evidence["mass"] = sum(mass(s) for _, s in sorted(scored.items())) / len(scored)
        return combined(comparison, {key: margin(s, key[1]) for key, s in scored.items()}, evidence)

    def _only_order(self, comparison: Comparison) -> int:
        """The order when only one is asked: by hash, so that the answers and not their names decide who is first."""
        a, b = (
            hashlib.sha256(f"{comparison.seed}\0{text}".encode("utf-8", "surrogatepass")).digest()
            for text in (comparison.response_a, comparison.response_b)
        )
        return int(a > b)

    # the prompt --------------------------------------------------------------------------------------------------

    def _shots(self, comparison: Comparison) -> list[tuple[ComparisonShot, Principle, bool]]:
        """The examples with their principle and whether the better answer comes first. Half of them (rounded up or
        down by chance) have it first; principles are drawn independently (section 4.1)."""
        count = self.options.shots
        if not count:
            return []
        # Not the stage's seed: that covers all pairs of the stage, and a label may depend on its own pair alone.
        per_run = self.options.shot_principles == "per_run"
        rng = random.Random(f"shots {self.context.constitution.digest if per_run else comparison.seed}")
        offset = rng.randrange(2)
        first = [(i + offset) % 2 == 0 for i in range(count)]
        rng.shuffle(first)
        principles = self.shot_principles or list(comparison.principles)
        return [(shot, rng.choice(principles), a) for shot, a in zip(self.shots[:count], first, strict=True)]

    def _question(
        self,
        prompt: Conversation,
        shown: Sequence[str],
        principle: Principle,
        shots: Sequence[tuple[ComparisonShot, Principle, bool]],
    ) -> ModelInput:
        examples = []
        for shot, shot_principle, better_first in shots:
            pair = (shot.better, shot.worse) if better_first else (shot.worse, shot.better)
            text = question_text(shot.prompt, pair, shot_principle)
            examples.append((text, LETTERS[0] if better_first else LETTERS[1]))
        question = question_text(prompt, shown, principle)
        if self.options.format == "paper":
            block = "".join(f"\n\n{text}\n\n{PREFIX}{letter}" for text, letter in examples)
            return ModelInput(text=f"{block}\n\n{question}\n\n{PREFIX}")
        messages = []
        for text, letter in examples:
            messages += [Message("user", text), Message("assistant", PREFIX + letter)]
        return ModelInput(messages=(*messages, Message("user", question)), prefill=PREFIX)
