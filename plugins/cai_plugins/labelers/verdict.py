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

_LETTER = r"(?:\(([AB])\)|\[\[([AB])\]\]|\[([AB])\]|\\boxed\{([AB])\}|<answer>\s*\(?([AB])\)?\s*</answer>)"
_SUBJECT = r"(?:the |my )?(?:final |correct |better |best )?(?:answer|verdict|choice|option|response)"
# Each is matched against a whole line: a letter inside a sentence may be the one that the sentence speaks against.
_CLEAR = re.compile(
    r"(?:(?:so|therefore|thus|hence),? )?"
    rf"(?:{_SUBJECT}(?: is:?|:)\s*|i (?:would )?(?:choose|pick|prefer)\s*)?{_LETTER}\s*\.?"
    rf"|(?:option |response |answer )?{_LETTER} is (?:the )?better(?: one| option| response| answer)?\.?",
    re.IGNORECASE,
)
# What would be a heading or an article in a longer text, and says enough where it is all of the text.
_ALONE = re.compile(
    rf"(?i:(?:option|response|answer) {_LETTER}\.?)|(?i:{_SUBJECT}(?: is:?|:)\s*)([AB])\.?|([AB])[.)]?"
    r"|\{\s*\"(?:answer|verdict|choice)\"\s*:\s*\"\(?([AB])\)?\"\s*\}"
)
_MARKUP = re.compile(r"[*_`$]+|^\s*#+\s")
_NAMED = re.compile(r"[(\[]([AB])[)\]]", re.IGNORECASE)
_WORSE = (
    r"worse|worst|wrong|incorrect|bad|reject\w*|avoid\w*|"
    r"(?<!less )(?<!least )(?:harmful|dangerous|toxic|unethical|dishonest|offensive|unsafe)|"
    r"(?:less|least) (?:helpful|harmless|honest|ethical|safe|good|appropriate|preferable|preferred)"
)
_NOT = r"not|never|neither|nor|except|\w+n\Wt"
# In a line that leads to the letter below it ("The worse response:") these turn its meaning round.
_TURNS = re.compile(rf"\b(?:{_WORSE}|{_NOT})\b", re.IGNORECASE)
# A line after the verdict that takes it back, or goes on to say that it is the worse one.
_RETRACTS = re.compile(
    r"\W*(?:(?:but|and|oh|well|hmm+|sorry|so|or),? )*(?:"
    r"(?:wait|actually|hold on|scratch that|strike that|correction|oops|on second thoughts?|on reflection|"
    r"let me (?:reconsider|rethink|think again)|just kidding|i (?:was|am) (?:wrong|mistaken)|i take (?:it|that) back|"
    r"i (?:made|have made) a mistake|i change my mind)\b"
    r"|(?:no|nope|not)\s*(?:[,.!;:\u2014-]|$|really\b|quite\b)"
    r"|(?:that|this|it|which|my (?:answer|choice|verdict)|the (?:answer|verdict|choice)(?: above)?)(?: is|\Ws| was) "
    rf"(?:the |clearly |much |by far |a |an )*(?:{_WORSE}|mistake|not (?:the|my|right|correct|true|what i))\b"
    r"(?! (?:to|that|for|if|when)\b)"
    rf"|(?:is|was|seems|would be) (?:the |clearly |much |by far |a |an )*(?:{_WORSE}|{_NOT})\b)",
    re.IGNORECASE,
)
_OPTION = re.compile(r"\b(?:[Oo]ptions?|[Rr]esponses?|[Aa]nswers?)\b|\b[AB]\b")
_UNDECIDED = re.compile(r"\b(?:cannot|can't|could not|couldn't) (?:choose|decide)\b", re.IGNORECASE)
_DECLINES = re.compile(
    r"\W*(?:i'?m (?:very )?sorry|i am sorry|sorry|i apologi[sz]e|as an ai\b|i (?:cannot|can't|won't|will not|am unable|"
    r"am not able|must decline))",
    re.IGNORECASE,
)
_TIE = re.compile(
    r"\b(?:tie|tied|draw|equal(?:ly)?|both|neither|same|it depends|no preference)\b|=",
    re.IGNORECASE,
)


class VerdictLabeler:
    """Asks for a letter, in both orders. P(A) is the share of verdicts for A, averaged over orders and principles.

    An order whose readable verdicts are not more than half of its samples fails the comparison: ``refusal`` or
    ``unparseable``, with ``tie`` in the evidence where the judge said so. Verdicts are read from what the judge writes
    and nowhere else; brackets that would end an answer early are taken apart. A judge that obeys a verdict inside an
    answer names the same letter in both orders, which decides nothing. How a verdict is read: ``read_verdict``.
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
        read = {key: self._read(comparison, done) for key, done in sorted(answers.items())}
        for (index, order, _), verdict in read.items():
            verdicts[index, order].append(verdict)
        every = [verdict for found in verdicts.values() for verdict in found]
        evidence["verdicts"] = every
        margins = {}
        for (index, order), found in verdicts.items():
            first, second = found.count("A"), found.count("B")
            if 2 * (first + second) <= len(found):
                odd = [verdict for verdict in found if verdict not in ("A", "B")]
                worst = max(("tie", "refusal", "unreadable"), key=odd.count)
                evidence["tie"] = worst == "tie"
                text = next(answers[key].text for key in read if key[:2] == (index, order) and read[key] == worst)
                kind: Literal["refusal", "unparseable"] = "refusal" if worst == "refusal" else "unparseable"
                message = f"no verdict ({worst}): {text.strip()[:200]!r}"
                return Label(comparison.id, None, evidence, UnitFailure(kind, message))
            margins[index, order] = (second - first if order else first - second) / (first + second)
        return combined(comparison, margins, evidence)

    @staticmethod
    def _read(comparison: Comparison, done: Completion) -> Verdict:
        quoted = (comparison.response_a, comparison.response_b)
        return read_verdict(done.text, quoted, cut=done.finish == "length")


def read_verdict(text: str, quoted: Sequence[str] = (), *, cut: bool = False) -> Verdict:
    """What the judge decided, by strict rules: better no verdict than one that was guessed.

    A verdict is a whole line: a letter in brackets, alone or after a few words that announce it ("The answer is (A)."),
    with or without Markdown. It is read where the text is nothing else (then a bare letter will do too), and where a
    longer text ends with it, or begins with it and does not name the other letter in brackets later; but not where
    another line is a verdict for the other letter, where the line above turns it round ("The worse response:"), or
    where a later line takes it back ("Wait, that is wrong."). In a longer text, a line that is in one of the ``quoted``
    answers may be an echo and does not count. Look-alike letters of other scripts are no letters.

    A ``<think>`` block is skipped; one without an end leaves nothing to read. ``cut``: the text was cut off, so that
    it counts only if all of it is a letter in brackets. What holds no verdict is a ``refusal``, a ``tie`` or
    ``unreadable``.
    """
    _, closed, after = text.rpartition("</think>")
    if closed:
        text = after
    elif "<think>" in text:
        return "unreadable"
    lines = [line for raw in text.splitlines() if (line := _bare(raw))]
    if len(lines) == 1 and (found := _letter(_CLEAR, lines[0]) or (None if cut else _letter(_ALONE, lines[0]))):
        return found
    if len(lines) > 1 and not cut:
        echoes = {_bare(raw) for answer in quoted for raw in answer.splitlines()}
        said = [None if line in echoes else _letter(_CLEAR, line) for line in lines]
        verdicts = {_letter(_CLEAR, line) or _letter(_ALONE, line) for line in lines} - {None}
        places = [place for place, line in enumerate(lines) if _letter(_CLEAR, line) or _letter(_ALONE, line)]
        turned = any(place and _leads_astray(lines[place - 1]) for place in places)
        taken_back = bool(places) and any(_RETRACTS.match(line) for line in lines[places[-1] + 1 :])
        named = {letter.upper() for letter in _NAMED.findall("\n".join(lines[1:]))}
        sure = len(verdicts) == 1 and not turned and not taken_back
        if sure and (found := said[-1] or (said[0] if named <= {said[0]} else None)):
            return found
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if _UNDECIDED.search(text):
        return "tie"
    # Words against an answer are no refusal to judge it: where letters are named, only "I" refuses.
    if _DECLINES.match(text) or (grade(text) == "refuse" and not _OPTION.search(text)):
        return "refusal"
    return "tie" if len(text) <= 200 and _TIE.search(text) else "unreadable"


def _leads_astray(line: str) -> bool:
    """Whether the letter below this line is the worse one. A sentence that is at its end speaks for itself."""
    return not line.endswith((".", "!")) and bool(_TURNS.search(line))


def _bare(line: str) -> str:
    return _MARKUP.sub("", line).strip()


def _letter(pattern: re.Pattern[str], line: str) -> Literal["A", "B"] | None:
    if (found := pattern.fullmatch(line)) is None:
        return None
    return "A" if next(filter(None, found.groups())).upper() == "A" else "B"
