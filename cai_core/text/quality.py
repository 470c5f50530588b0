"""What makes a text unfit to learn from: loops, bare refusals, emoji, sentences that half of all texts share.

Thresholds are our choices; ``tests/benchmarks/quality_filters.py`` prints how often each fires on real answers.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections import Counter
from itertools import pairwise

from cai_core.text.refusals import grade

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_SENTENCE = re.compile(r"[^.!?\n]+")
_EMOJI = re.compile("[\u2600-\u27bf\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff]")

REPEATED_SHARE = 0.3
MANY_EMOJI = 3
EMOJI_PER_WORD = 0.1
BARE_REFUSAL_WORDS = 30
_SLOTS = 1 << 22


def repeats(text: str) -> bool:
    """Whether it runs in a loop: a word six times in a row, a sentence three times, or more than 30 % of its 4-grams
    of words have been there before (in texts of at least 20 words)."""
    words = [word.lower() for word in _WORD.findall(text)]
    run = longest = 1
    for before, word in pairwise(words):
        run = run + 1 if word == before else 1
        longest = max(longest, run)
    if longest >= 6:
        return True
    sentences = Counter(_sentences(text))
    if sentences and max(sentences.values()) >= 3:
        return True
    if len(words) < 20:
        return False
    fours = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(fours)) / len(fours) > REPEATED_SHARE


def bare_refusal(text: str) -> bool:
    """Whether it refuses and engages with nothing: a refusal of at most 30 words."""
    return len(_WORD.findall(text)) <= BARE_REFUSAL_WORDS and grade(text) == "refuse"


def too_many_emoji(text: str) -> bool:
    """At least three, and more than one for ten words."""
    count = len(_EMOJI.findall(text))
    return count >= MANY_EMOJI and count > EMOJI_PER_WORD * len(_WORD.findall(text))


class Boilerplate:
    """Finds sentences that too many texts share. First ``count`` every text, then ask ``dominates``.

    Memory is constant (16 MB): sentences are counted in 4 million slots by hash, so that a count may be too high
    where two sentences meet in a slot, and never too low.
    """

    def __init__(self, share: float = 0.1, at_least: int = 8) -> None:
        # Our choice: a sentence in a tenth of all answers is a habit; fewer than 8 of them show nothing.
        self.share = share
        self.at_least = at_least
        self.texts = 0
        self._counts = array("I", bytes(4 * _SLOTS))

    def count(self, text: str) -> None:
        """Take a text into account."""
        self.texts += 1
        for sentence in set(_sentences(text)):
            self._counts[_slot(sentence)] += 1

    def dominates(self, text: str) -> bool:
        """Whether at least half of its words stand in sentences that too many texts share."""
        limit = max(self.at_least, self.share * self.texts)
        lengths = [(len(s.split()), self._counts[_slot(s)] >= limit) for s in _sentences(text)]
        total = sum(n for n, _ in lengths)
        return total > 0 and 2 * sum(n for n, shared in lengths if shared) >= total


def _sentences(text: str) -> list[str]:
    """Sentences of at least four words, in lower case without punctuation."""
    found = (" ".join(_WORD.findall(part.lower())) for part in _SENTENCE.findall(text))
    return [sentence for sentence in found if sentence.count(" ") >= 3]


def _slot(sentence: str) -> int:
    return zlib.crc32(sentence.encode("utf-8", "replace")) % _SLOTS
