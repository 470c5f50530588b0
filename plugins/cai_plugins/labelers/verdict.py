"""Labels from a judge that answers in words: for chat models and servers without log-probabilities."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from cai_core.text.refusals import grade
from cai_core.types.backend import Completion, GenerateRequest, Sampling
from cai_core.types.context import StageContext
from cai_core.types.labeler import Comparison, Label
from cai_core.types.records import Message, ModelInput, UnitFailure
from cai_plugins.labelers.plugin import VerdictOptions
from cai_plugins.labelers.questions import combined, question_text, shown_in, unjudgeable

INSTRUCTION = "Answer with the letter of the better option and nothing else: (A) or (B)."
Verdict = Literal["A", "B", "tie", "refusal", "unreadable"]

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
# The whole text must be one of these: a letter in parentheses, brackets, asterisks or alone; or after a few words that
# announce it. A letter found inside a sentence may be the one that the sentence speaks against.
_LETTER = r"(?:\*\*)?(?:\(([AB])\)|\[\[([AB])\]\]|\[([AB])\]|([AB]))(?:\*\*)?"
_PLAIN = re.compile(
    rf"\s*(?:(?:the |my )?(?:final |correct |better )?(?:answer|verdict|choice|option)(?: is)?\s*:?\s*)?{_LETTER}\s*\.?\s*",
    re.IGNORECASE,
)
_TIE = re.compile(
    r"\b(?:tie|equal(?:ly)?|both|neither|cannot (?:choose|decide)|can't (?:choose|decide)|same|it depends)\b|=",
    re.IGNORECASE,
)


class VerdictLabeler:
    """Asks for a letter, in both orders. P(A) is the share of verdicts for A, averaged over orders and principles.

    An order whose readable verdicts are not more than half of its samples fails the comparison: ``refusal`` or
    ``unparseable``, with ``tie`` in the evidence where the judge said so. Verdicts are read from what the judge writes
    and nowhere else; brackets that would end an answer early are taken apart.
    """

    def __init__(self, options: VerdictOptions, context: StageContext) -> None:
        self.options = options
        self.context = context

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        """See ``Labeler``."""
        requests: list[GenerateRequest] = []
        waiting: dict[str, int] = {}
        for number, comparison in enumerate(comparisons):
            if failed := unjudgeable(comparison):
                yield failed
                continue
            own = list(self._requests(str(number), comparison))
            waiting[str(number)] = len(own)
            requests += own
        if not requests:
            return
        answers: dict[str, dict[tuple[int, int, int], Completion]] = defaultdict(dict)
        for done in self.context.backend("judge").generate(requests):
            number_text, *key = done.id.split("/")
            index, order, sample = map(int, key)
            answers[number_text][index, order, sample] = done
            if len(answers[number_text]) == waiting[number_text]:
                yield self._label(comparisons[int(number_text)], answers.pop(number_text))

    def _requests(self, number: str, comparison: Comparison) -> Iterator[GenerateRequest]:
        options = self.options
        sampling = Sampling(options.max_new_tokens, options.temperature, 1.0)
        for index, principle in enumerate(comparison.principles):
            for order in (0, 1):
                shown = shown_in(comparison, order)
                text = f"{question_text(comparison.prompt, shown, principle)}\n\n{INSTRUCTION}"
                for sample in range(options.samples):
                    # The seed follows what is shown, so that the names A and B do not matter.
                    seed = hashlib.sha256(
                        f"{comparison.seed}\0{sample}\0{text}".encode("utf-8", "surrogatepass")
                    ).digest()
                    yield GenerateRequest(
                        f"{number}/{index}/{order}/{sample}",
                        ModelInput(messages=(Message("user", text),)),
                        sampling,
                        int.from_bytes(seed[:8], "big") >> 1,
                    )

    def _label(self, comparison: Comparison, answers: dict[tuple[int, int, int], Completion]) -> Label:
        evidence: dict[str, Any] = {"tokens_in": sum(done.tokens_in for done in answers.values())}
        for _, done in sorted(answers.items()):
            if done.failure:
                return Label(comparison.id, None, evidence, done.failure)
        verdicts: dict[tuple[int, int], list[Verdict]] = defaultdict(list)
        for (index, order, _), done in sorted(answers.items()):
            verdicts[index, order].append(read_verdict(done.text))
        every = [verdict for found in verdicts.values() for verdict in found]
        evidence["verdicts"] = every
        margins = {}
        for (index, order), found in verdicts.items():
            first, second = found.count("A"), found.count("B")
            if 2 * (first + second) <= len(found):
                odd = [verdict for verdict in found if verdict not in ("A", "B")]
                worst = max(("tie", "refusal", "unreadable"), key=odd.count)
                evidence["tie"] = worst == "tie"
                text = next(d.text for (i, o, _), d in sorted(answers.items())
                            if (i, o) == (index, order) and read_verdict(d.text) == worst)  # fmt: skip
                kind: Literal["refusal", "unparseable"] = "refusal" if worst == "refusal" else "unparseable"
                message = f"no verdict ({worst}): {text.strip()[:200]!r}"
                return Label(comparison.id, None, evidence, UnitFailure(kind, message))
            margins[index, order] = (second - first if order else first - second) / (first + second)
        return combined(comparison, margins, evidence)


def read_verdict(text: str) -> Verdict:
    """The letter that the whole text consists of; or why it is none. A leading ``<think>`` block is skipped."""
    text = _THOUGHT.sub("", text)
    if found := _PLAIN.fullmatch(text):
        return "A" if next(filter(None, found.groups())).upper() == "A" else "B"
    if grade(text) == "refuse":
        return "refusal"
    return "tie" if len(text) <= 200 and _TIE.search(text) else "unreadable"
