"""Labels from the log-probabilities of " (A)" and " (B)" (Bai et al. 2022, section 4.1, without chain of thought)."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from cai_core.errors import UserError
from cai_core.text.transcripts import render_transcript
from cai_core.types.backend import ScoreRequest, Scores
from cai_core.types.context import StageContext
from cai_core.types.labeler import Comparison, Label
from cai_core.types.principles import ComparisonShot, Principle
from cai_core.types.records import Conversation, Message, ModelInput, UnitFailure
from cai_plugins.labelers.plugin import LogprobOptions

# The letters with space and parentheses, as the paper's published prompts score them. The whole string is scored: a
# bare letter is another token after a space than after a parenthesis, and which one differs between tokenizers.
LETTERS = (" (A)", " (B)")
PREFIX = "The answer is:"
FEW_SHOTS = Path(__file__).parent / "data" / "few_shots.jsonl"


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

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        """See ``Labeler``. All requests go to the judge in one call, so that they share batches and prefixes."""
        asked: list[ScoreRequest] = []
        waiting: dict[str, int] = {}
        by_id = {str(number): comparison for number, comparison in enumerate(comparisons)}
        for number, comparison in by_id.items():
            lacking = [p.id for p in comparison.principles if not p.comparison]
            if lacking or not comparison.principles:
                reason = f"principle {lacking[0]} has no comparison text" if lacking else "no principle was given"
                yield Label(comparison.id, None, failure=UnitFailure("unparseable", reason))
                continue
            orders = (0, 1) if self.options.swap else (self._only_order(comparison),)
            shots = self._shots(comparison)
            for index, principle in enumerate(comparison.principles):
                for order in orders:
                    shown = (comparison.response_a, comparison.response_b)[:: -1 if order else 1]
                    asked.append(
                        ScoreRequest(
                            f"{number}/{index}/{order}",
                            self._question(comparison.prompt, shown, principle, shots),
                            LETTERS,
                        )
                    )
            waiting[number] = len(comparison.principles) * len(orders)
        if not asked:
            return
        scored: dict[str, dict[tuple[int, int], Scores]] = defaultdict(dict)
        for scores in self.context.backend("judge").score(asked):
            number, index, order_text = scores.id.split("/")
            scored[number][int(index), int(order_text)] = scores
            if len(scored[number]) == waiting[number]:
                yield self._label(by_id[number], scored.pop(number))

    def _label(self, comparison: Comparison, scored: dict[tuple[int, int], Scores]) -> Label:
        tokens_in = sum(scores.tokens_in for scores in scored.values())
        evidence: dict[str, object] = {"tokens_in": tokens_in, "principles": [p.id for p in comparison.principles]}
        for _, scores in sorted(scored.items()):
            if scores.failure:
                return Label(comparison.id, None, evidence, scores.failure)
            if not all(math.isfinite(value) for value in scores.logprobs):
                failure = UnitFailure("infra", "the judge's log-probabilities are not finite")
                return Label(comparison.id, None, evidence, failure)
        margins: dict[int, list[float]] = {0: [], 1: []}
        for (_, order), scores in sorted(scored.items()):
            first, second = scores.logprobs
            # P(A) - P(B) of a softmax over two is tanh of half the difference; unlike exp it is an odd function in
            # floating point too, which makes the swapped comparison come out as exactly 1 - p.
            margins[order].append(math.tanh((second - first if order else first - second) / 2))
        sums = [sum(margins[order]) for order in (0, 1)]
        p_a = _from_margin((sums[0] + sums[1]) / len(scored))
        evidence["mass"] = sum(sum(map(math.exp, s.logprobs)) for _, s in sorted(scored.items())) / len(scored)
        if margins[0] and margins[1]:
            evidence["p_a_first"] = _from_margin(sums[0] / len(margins[0]))
            evidence["p_a_second"] = _from_margin(sums[1] / len(margins[1]))
            evidence["flip"] = min(sums) < 0 < max(sums)
        return Label(comparison.id, p_a, evidence)

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


def question_text(prompt: Conversation, shown: Sequence[str], principle: Principle) -> str:
    """The multiple choice as the paper words it, from "Consider" to the second option; the blank line and line break
    before the principle are in the published prompts too."""
    turns = render_transcript(prompt)
    a, b = (_inside_brackets(text) for text in shown)
    return (
        f"Consider the following conversation between a human and an assistant:{turns}"
        f"\n\n\n{principle.comparison} Options:\n (A) [[[{a}]]]\n (B) [[[{b}]]]"
    )


def _inside_brackets(text: str) -> str:
    # An answer that closes the brackets could write options or a verdict of its own.
    return text.replace("[[[", "[ [ [").replace("]]]", "] ] ]")


def _from_margin(margin: float) -> float:
    """(1 + margin) / 2, rounded on the larger side so that the values for +m and -m add up to exactly 1."""
    larger = 0.5 + min(abs(margin), 1.0) / 2
    return larger if margin >= 0 else 1.0 - larger


@cache
def few_shots() -> tuple[ComparisonShot, ...]:
    """The worked examples, in the order of the file."""
    lines = FEW_SHOTS.read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines if line.strip()]
    return tuple(ComparisonShot((Message("user", e["prompt"]),), e["better"], e["worse"]) for e in entries)
