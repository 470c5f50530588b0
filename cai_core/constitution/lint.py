"""What goes wrong with constitutions in practice, found before a model learns it.

Every rule is a heuristic on wording and says so by its level: ``error`` breaks prompts or stages, ``warning`` is
likely a mistake, ``note`` is worth a second look.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from cai_core.text.duplicates import grams, similarity
from cai_core.text.words import Relevance, stems
from cai_core.types.principles import Constitution, FewShots, Principle

Level = Literal["error", "warning", "note"]
TEXTS = ("critique", "revision", "comparison")
NEAR = 0.7
"""Similarity (5-grams of characters) from which two texts are nearly one: our choice; the paper's own files have pairs
above it."""

# Tags of the raw-text templates, brackets of the comparison and special tokens of chat models.
_BREAKS = re.compile(
    r"(?:^|\n)\s*(?:Human|Assistant|System|User|H|A|CritiqueRequest|Critique|RevisionRequest|Revision)\s*:"
    r"|\[\[\[|\]\]\]|<\|[^|>]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>",
    re.IGNORECASE,
)
_LABEL_AT_END = re.compile(r"(?:Options|Critique|Revision|Answer)\s*:\s*$", re.IGNORECASE)
_BLANK_LINE = re.compile(r"\n\s*\n")
_NEGATIVE = re.compile(
    r"\b(?:not|never|no|without|avoid\w*|less|least|fewer|fewest|remov\w+|refus\w+|drop|delete|freer|"
    r"(?:do|does|is|are|should|would)n't|stop|take out|strip|leave out|rather than)\b",
    re.IGNORECASE,
)
_POSITIVE = re.compile(
    r"\b(?:more|most|better|best|clear\w*|while|instead|suggest\w*|offer\w*|explain\w*|name\w*|point to|steer\w*|"
    r"help\w*|keep\w*|with|to be|to read|to speak|to put|treats?|says?|still|protects?|does more|would|as|so that)\b",
    re.IGNORECASE,
)
_OPPOSITES = (
    ("more", "less"), ("most", "least"), ("longer", "shorter"), ("always", "never"), ("include", "remove"),
    ("add", "remove"), ("formal", "informal"), ("with", "without"),
    ("more", "fewer"), ("agree", "disagree"), ("direct", "indirect"), ("detailed", "brief"), ("better", "worse"),
)  # fmt: skip

_NEGATION = re.compile(r"\b(?:not|never|n't)\b\s*")
# Zero-width and direction-changing characters; the joiners and marks that scripts need (U+200C to U+200F) are none.
_UNSEEN = re.compile("[\u00ad\u200b\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
COMPARED = 500
"""Principles that are compared with each other, every pair: our choice, some seconds at most. The paper has 16."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at. ``principles``: ids, none when it is about the whole."""

    level: Level
    rule: str
    message: str
    principles: tuple[str, ...] = ()


def lint(constitution: Constitution, prompts: Sequence[str] = ()) -> list[Finding]:
    """All findings, errors first. ``prompts``: texts of the prompts that it is meant for; without them the rule
    ``never-triggered`` is not applied."""
    found = [
        *_halves(constitution),
        *(finding for principle in constitution.principles for finding in _wording(principle)),
        *_examples(constitution.few_shots),
        *_pairs(constitution.principles),
        *(_triggers(constitution.principles, prompts) if prompts else ()),
    ]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.level))


def _halves(constitution: Constitution) -> Iterator[Finding]:
    principles = constitution.principles
    for principle in principles:
        if bool(principle.critique) != bool(principle.revision):
            have, lack = ("critique", "revision") if principle.critique else ("revision", "critique")
            yield Finding("warning", "half", f"has a {have} text and no {lack} text", (principle.id,))
    # One list for both stages (as ours are) should be complete; two lists (as the paper's) are complete each.
    both = [p for p in principles if p.revision and p.comparison]
    for principle in principles if both else ():
        if bool(principle.revision) != bool(principle.comparison):
            lack = "comparison" if principle.revision else "revision"
            stage = "labels" if principle.revision else "revisions"
            yield Finding("note", "half", f"has no {lack} text, so {stage} never see it", (principle.id,))
    for lack, stage in (("revision", "revise"), ("comparison", "label")):
        if not any(getattr(principle, lack) for principle in principles):
            yield Finding("warning", "half", f"no principle has a {lack} text, so the stage `{stage}` cannot run")


def _wording(principle: Principle) -> Iterator[Finding]:
    for name in TEXTS:
        text = getattr(principle, name)
        if found := _BREAKS.search(text):
            message = f"its {name} {_marked(found)}"
            yield Finding("error", "breaks-template", message, (principle.id,))
        if found := _LABEL_AT_END.search(text):
            message = f"its {name} ends on the label {found.group()!r}, which templates add"
            yield Finding("error", "breaks-template", message, (principle.id,))
        if found := _UNSEEN.search(text):
            yield Finding("warning", "unseen", f"its {name} {_hidden(found)}", (principle.id,))
        if _BLANK_LINE.search(text):
            message = f"its {name} holds a blank line, which separates turns in raw-text templates"
            yield Finding("error", "breaks-template", message, (principle.id,))
        if name != "critique" and text and _NEGATIVE.search(text) and not _POSITIVE.search(text):
            message = f"its {name} says only what to avoid; say also what is wanted, or the model learns to say nothing"
            yield Finding("note", "only-negative", message, (principle.id,))


def _examples(shots: FewShots) -> Iterator[Finding]:
    """Worked examples are put between the same marks; those with reasoning are raw text, which has marks of its own."""
    for kind in ("critiques", "comparisons", "reasoning"):
        for number, shot in enumerate(getattr(shots, kind)):
            place = f"few_shots.{kind}[{number}]"
            if isinstance(shot, str):
                texts = {place: shot}
            else:
                names = [name for name in shot.__dataclass_fields__ if name != "prompt"]
                texts = {f"{place}.{name}": getattr(shot, name) for name in names}
                texts |= {f"{place}.prompt[{n}]": turn.content for n, turn in enumerate(shot.prompt)}
            for where, text in texts.items():
                if kind != "reasoning" and (found := _BREAKS.search(text)):
                    yield Finding("error", "breaks-template", f"{where} {_marked(found)}")
                if found := _UNSEEN.search(text):
                    yield Finding("warning", "unseen", f"{where} {_hidden(found)}")


def _marked(found: re.Match[str]) -> str:
    return f"holds {found.group().strip()!r}, which templates use as a mark"


def _hidden(found: re.Match[str]) -> str:
    return f"holds the unseen character U+{ord(found.group()):04X}: a model reads what nobody sees"


def _pairs(principles: Sequence[Principle]) -> Iterator[Finding]:
    if len(principles) > COMPARED:
        message = f"there are {len(principles)} principles; only the first {COMPARED} were compared with each other"
        yield Finding("note", "near-duplicate", message)
    for name in TEXTS:
        texts = [_Text(p.id, getattr(p, name)) for p in principles[:COMPARED] if getattr(p, name)]
        for a, b in combinations(texts, 2):
            close = len(a.grams & b.grams) / len(a.grams | b.grams)
            if close == 1:
                yield Finding("warning", "duplicate", f"have the same {name}", (a.principle, b.principle))
            elif _opposite(a, b):
                message = f"their {name} texts ask for opposite things: {a.text!r} / {b.text!r}"
                yield Finding("warning", "contradiction", message, (a.principle, b.principle))
            elif close >= NEAR:
                message = f"have nearly the same {name} ({close:.0%})"
                yield Finding("note", "near-duplicate", message, (a.principle, b.principle))


class _Text:
    """A text with what comparing it with every other needs."""

    def __init__(self, principle: str, text: str) -> None:
        self.principle = principle
        self.text = text
        self.lower = text.lower()
        self.grams = grams(text)
        self.words = frozenset(re.findall(r"[\w']+", self.lower))
        self.negated = bool(_NEGATION.search(self.lower))


def _opposite(a: _Text, b: _Text) -> bool:
    """Whether the texts become nearly one when words of ``a`` are replaced by their opposites or a "not" is dropped."""
    if a.negated != b.negated:
        without = (_NEGATION.sub("", text.lower) for text in (a, b))
        if similarity(*without) >= 0.85:
            return True
    both_ways = (pair for words in _OPPOSITES for pair in (words, words[::-1]))
    swaps = {one: other for one, other in both_ways if one in a.words and other in b.words - a.words}
    if not swaps:
        return False
    swapped = re.sub(r"[\w']+", lambda word: swaps.get(word.group(), word.group()), a.lower)
    return similarity(swapped, b.lower) >= 0.85


def _triggers(principles: Sequence[Principle], prompts: Sequence[str]) -> Iterator[Finding]:
    texts = [" ".join((*(getattr(p, name) for name in TEXTS), *p.tags)) for p in principles]
    relevance = Relevance(texts)
    touched = [0] * len(principles)
    for prompt in prompts:
        for i, score in enumerate(relevance.scores(prompt)):
            touched[i] += score > 0
    for principle, text, count in zip(principles, texts, touched, strict=True):
        if count == 0 and stems(text):
            message = f"none of the {len(prompts)} prompts shares a word with it; it may have nothing to teach there"
            yield Finding("warning", "never-triggered", message, (principle.id,))
