"""The multiple choice that judges read, and how the probabilities of its orders and principles become one label
(Bai et al. 2022, section 4.1)."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cai_core.errors import UserError
from cai_core.text.judging import inside_brackets
from cai_core.text.transcripts import render_transcript
from cai_core.types.backend import Backend, Capabilities, ChecksScores, ScoreRequest, Scores
from cai_core.types.labeler import Comparison, Label
from cai_core.types.principles import ComparisonShot, Principle
from cai_core.types.records import Conversation, Message, ModelInput, UnitFailure

# The letters with space and parentheses, as the paper's published prompts score them. The whole string is scored: a
# bare letter is another token after a space than after a parenthesis, and which one differs between tokenizers.
LETTERS = (" (A)", " (B)")
FEW_SHOTS = Path(__file__).parent / "data" / "few_shots.jsonl"


def question_text(prompt: Conversation, shown: Sequence[str], principle: Principle) -> str:
    """The multiple choice as the paper words it, from "Consider" to the second option; the blank line and line break
    before the principle are in the published prompts too."""
    turns = render_transcript(prompt)
    return (
        f"Consider the following conversation between a human and an assistant:{turns}"
        f"\n\n\n{principle.comparison} {options_text(shown)}"
    )


def options_text(shown: Sequence[str]) -> str:
    """The two answers as the paper writes them."""
    a, b = (inside_brackets(text) for text in shown)
    return f"Options:\n (A) [[[{a}]]]\n (B) [[[{b}]]]"


def unjudgeable(comparison: Comparison) -> Label | None:
    """A failed label where a comparison has no principle, or one without a comparison text."""
    lacking = [p.id for p in comparison.principles if not p.comparison]
    if not lacking and comparison.principles:
        return None
    reason = f"principle {lacking[0]} has no comparison text" if lacking else "no principle was given"
    return Label(comparison.id, None, failure=UnitFailure("unparseable", reason))


def shown_in(comparison: Comparison, order: int) -> tuple[str, str]:
    """The answers as order 0 (A first) or 1 (B first) shows them."""
    pair = (comparison.response_a, comparison.response_b)
    return pair if order == 0 else pair[::-1]


def check_letters(judge: Backend, question: ModelInput) -> None:
    """Prove on the actual judge, once, that P(" (A)") means what it says.

    Raises ``UserError`` where the judge gives no log-probabilities, or its tokenizer cuts the letters differently after
    the question than on their own: their scores would be those of a text that the model never writes. A backend without
    ``ChecksScores`` is believed.
    """
    if not getattr(judge, "capabilities", Capabilities(score=True)).score:
        raise UserError("this judge gives no log-probabilities", where="labeler", hint="use the labeler `verdict`")
    problem = judge.score_problem(ScoreRequest("check", question, LETTERS)) if isinstance(judge, ChecksScores) else ""
    if problem:
        raise UserError(
            f"the judge's tokenizer does not score what is meant: {problem}",
            where="labeler",
            hint="use the labeler `verdict` with this judge, or another judge",
        )


def mass(scores: Scores) -> float:
    """Probability on the two letters together."""
    return sum(map(math.exp, scores.logprobs))


def margin(scores: Scores, order: int) -> float:
    """P(A) - P(B), normalised over the two letters, for the answers A and B of the comparison shown in ``order``."""
    first, second = scores.logprobs
    # A softmax over two, as tanh of half the difference; unlike exp it is an odd function in floating point too, which
    # makes the swapped comparison come out as exactly 1 - p.
    return math.tanh((second - first if order else first - second) / 2)


def combined(
    comparison: Comparison,
    margins: Mapping[tuple[int, int], float],
    evidence: Mapping[str, Any],
    clamp: tuple[float, float] | None = None,
) -> Label:
    """One label from ``margins``: (number of the principle, order) -> P(A) - P(B), for A and B of the comparison.

    ``p_a`` is the mean over all of them, then held within ``clamp``. Swapping A and B gives exactly 1 - p. Evidence
    gets ``p_a_first`` and ``p_a_second`` for the orders that were asked, ``flip`` where both were, ``by_principle`` and
    ``disagreement`` (standard deviation) where there are several principles, ``unclamped`` where the clamp changed p.
    """
    found: dict[str, Any] = {"principles": [p.id for p in comparison.principles], **evidence}
    by_order = [[m for (_, order), m in sorted(margins.items()) if order == wanted] for wanted in (0, 1)]
    sums = [sum(by_order[0]), sum(by_order[1])]
    p_a = from_margin((sums[0] + sums[1]) / len(margins))
    for name, total, own in zip(("p_a_first", "p_a_second"), sums, by_order, strict=True):
        if own:
            found[name] = from_margin(total / len(own))
    if by_order[0] and by_order[1]:
        found["flip"] = min(sums) < 0 < max(sums)
    if len(comparison.principles) > 1:
        parts = {}
        for index, principle in enumerate(comparison.principles):
            own = [m for (number, _), m in sorted(margins.items()) if number == index]
            parts[principle.id] = from_margin(sum(own) / len(own))
        found["by_principle"] = parts
        found["disagreement"] = statistics.pstdev(parts.values())
    if clamp and not clamp[0] <= p_a <= clamp[1]:
        found["unclamped"] = p_a
        p_a = min(max(p_a, clamp[0]), clamp[1])
    return Label(comparison.id, p_a, found)


def from_margin(margin: float) -> float:
    """P(A) from P(A) - P(B): (1 + margin) / 2, rounded on the larger side, so that the values for +m and -m add up to
    exactly 1."""
    larger = 0.5 + min(abs(margin), 1.0) / 2
    return larger if margin >= 0 else 1.0 - larger


@cache
def few_shots() -> tuple[ComparisonShot, ...]:
    """The worked examples, in the order of the file."""
    lines = FEW_SHOTS.read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines if line.strip()]
    return tuple(ComparisonShot((Message("user", e["prompt"]),), e["better"], e["worse"]) for e in entries)
