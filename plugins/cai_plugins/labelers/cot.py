"""Reasoning first, then the letters (Bai et al. 2022, section 4.1, "Chain-of-Thought Prompting")."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from cai_core.errors import UserError
from cai_core.text.judging import REASONINGS, unscored
from cai_core.text.transcripts import render_transcript
from cai_core.types.backend import GenerateRequest, Sampling, ScoreRequest
from cai_core.types.context import StageContext
from cai_core.types.labeler import Comparison, Label
from cai_core.types.principles import Principle
from cai_core.types.records import Conversation, Message, ModelInput, UnitFailure
from cai_plugins.labelers.plugin import CotOptions
from cai_plugins.labelers.questions import (
    LETTERS,
    check_letters,
    combined,
    margin,
    mass,
    options_text,
    question_text,
    shown_in,
    unjudgeable,
)

START = "Let's think step by step:"
# How the released examples read the answer out; the paper itself does not say.
READ_OUT = "So the answer is:"
Key = tuple[int, int, int]  # principle, order, sample


class CotLabeler:
    """Every principle and order is reasoned about ``samples`` times; each reasoning is followed by the read-out, whose
    letters are scored. The probabilities, not their logarithms, are averaged (section 2 of the paper), then clamped.

    What is drawn depends on the comparison's seed and on what is shown, not on which answer is called A, so swapping
    gives exactly 1 - p where the backend gives equal requests equal results.
    """

    def __init__(self, options: CotOptions, context: StageContext) -> None:
        self.options = options
        self.context = context
        self.examples = context.constitution.few_shots.reasoning
        if options.shots and options.format == "chat":
            raise UserError(
                "worked examples of reasoning are raw text",
                where="labeler.shots",
                hint="use `format: paper` or shots 0",
            )
        if options.shots > len(self.examples):
            raise UserError(
                f"{options.shots} worked examples of reasoning are asked for and the constitution has "
                f"{len(self.examples)}",
                where="labeler.shots",
                hint="`cai constitution import` reads the paper's; or put your own under few_shots.reasoning",
            )
        self.shot_principles = [p for p in context.constitution.principles if p.comparison]
        self.checked = False

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        """See ``Labeler``. Labels come in groups of about ``REASONINGS`` reasonings."""
        principles = max((len(comparison.principles) for comparison in comparisons), default=1)
        size = max(1, REASONINGS // (2 * self.options.samples * max(1, principles)))
        for start in range(0, len(comparisons), size):
            yield from self._group(comparisons[start : start + size])

    def _group(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        judge = self.context.backend("judge")
        keys = [
            (index, order, sample)
            for index in range(max((len(c.principles) for c in comparisons), default=0))
            for order in (0, 1)
            for sample in range(self.options.samples)
        ]
        asked: dict[str, tuple[int, Key, GenerateRequest]] = {}
        for number, comparison in enumerate(comparisons):
            if failed := unjudgeable(comparison):
                yield failed
                continue
            for key in keys:
                if key[0] < len(comparison.principles):
                    request = self._request(f"{number}/{'/'.join(map(str, key))}", comparison, key)
                    asked[request.id] = (number, key, request)
        if asked and not self.checked:
            first = next(iter(asked.values()))[2].input
            check_letters(judge, self._read_out(first, " One of them is better."))
            self.checked = True
        broken: dict[int, UnitFailure] = {}
        reasons: dict[int, dict[Key, str]] = defaultdict(dict)
        tokens: dict[int, int] = defaultdict(int)
        score: list[ScoreRequest] = []
        for done in judge.generate([request for _, _, request in asked.values()]):
            number, key, request = asked[done.id]
            tokens[number] += done.tokens_in
            if done.failure:
                broken.setdefault(number, done.failure)
                continue
            reasons[number][key] = done.text
            score.append(ScoreRequest(done.id, self._read_out(request.input, done.text), LETTERS))
        score = [request for request in score if asked[request.id][0] not in broken]
        margins: dict[int, dict[Key, float]] = defaultdict(dict)
        masses: dict[int, list[float]] = defaultdict(list)
        for scores in judge.score(score) if score else ():
            number, key, _ = asked[scores.id]
            if failure := unscored(scores):
                broken.setdefault(number, failure)
                continue
            margins[number][key] = margin(scores, key[1])
            masses[number].append(mass(scores))
        for number in sorted({number for number, _, _ in asked.values()}):
            comparison = comparisons[number]
            evidence: dict[str, Any] = {"tokens_in": tokens[number]}
            if number in broken:
                yield Label(comparison.id, None, evidence, broken[number])
                continue
            evidence["mass"] = sum(sorted(masses[number])) / len(masses[number])
            evidence["reasoning"] = reasons[number][0, 0, 0][: self.options.keep_characters]
            mean = {
                (index, order): sum(margins[number][index, order, s] for s in range(self.options.samples))
                / self.options.samples
                for index, order, sample in margins[number]
                if sample == 0
            }
            yield combined(comparison, mean, evidence, self.options.clamp)

    # the prompt --------------------------------------------------------------------------------------------------

    def _request(self, name: str, comparison: Comparison, key: Key) -> GenerateRequest:
        index, order, sample = key
        shown = shown_in(comparison, order)
        principle = comparison.principles[index]
        seed = hashlib.sha256(
            f"{comparison.seed}\0{principle.id}\0{sample}\0{shown[0]}\0{shown[1]}".encode("utf-8", "surrogatepass")
        )
        sampling = Sampling(self.options.max_new_tokens, self.options.temperature, self.options.top_p)
        asked = self._question(comparison, shown, principle)
        return GenerateRequest(name, asked, sampling, int.from_bytes(seed.digest()[:8], "big") >> 1)

    def _question(self, comparison: Comparison, shown: Sequence[str], principle: Principle) -> ModelInput:
        if self.options.format == "chat":
            text = question_text(comparison.prompt, shown, principle)
            return ModelInput(messages=(Message("user", text),), prefill=START, stop=(READ_OUT,))
        rng = random.Random(f"shots {comparison.seed}")
        principles = self.shot_principles or list(comparison.principles)
        # Drawn per example, independently (section 4.1).
        examples = [
            f"\n\n{example.strip()}".replace("{}", f"{rng.choice(principles).comparison} Options:")
            for example in self.examples[: self.options.shots]
        ]
        text = (
            "\n\nHuman: Consider the following conversation between a human (H) and an assistant (A):"
            f"{_initials(comparison.prompt)}\n\n{principle.comparison} {options_text(shown)}\n\nAssistant: {START}"
        )
        return ModelInput(text="".join(examples) + text, stop=("\n\nHuman:", READ_OUT))

    def _read_out(self, asked: ModelInput, reasoning: str) -> ModelInput:
        if asked.messages:
            return ModelInput(messages=asked.messages, prefill=f"{START}{reasoning.rstrip()}\n\n{READ_OUT}")
        return ModelInput(text=f"{asked.text}{reasoning.rstrip()}\n\nHuman:\n{READ_OUT}")


def _initials(prompt: Conversation) -> str:
    """The conversation with H and A for its roles, so that they are not the outer turns."""
    return render_transcript(prompt).replace("\n\nHuman:", "\n\nH:").replace("\n\nAssistant:", "\n\nA:")
