"""What makes a text unfit to learn from: loops, bare refusals, emoji, sentences that half of all texts share.

Thresholds are our choices; ``tests/benchmarks/quality_filters.py`` prints how often each fires on real answers.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from cai_core.text.refusals import grade

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_SENTENCE = re.compile(r"[^.!?\n]+")
_EMOJI = re.compile("[\u2600-\u27bf\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff]")
# Scripts without spaces between words: Thai and Lao, Myanmar, Khmer, kana and Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
_LETTER = re.compile(f"[{_UNSPACED}]")
_LETTERS = re.compile(rf"(?=[{_UNSPACED}])\w|(?:(?![{_UNSPACED}])\w)+")  # one letter of those, or a word of others
_IN_A_ROW = re.compile(rf"([{_UNSPACED}]{{2,8}}?)\1{{5}}")
_SENTENCE_OF_LETTERS = re.compile(r"[^.!?\n\u3002\uff01\uff1f\uff61\u17d4\u104b]+")

REPEATED_SHARE = 0.3
MANY_EMOJI = 3
EMOJI_PER_WORD = 0.1
BARE_REFUSAL_WORDS = 30
_SLOTS = 1 << 22


def repeats(text: str) -> bool:
    """Whether it runs in a loop: a word six times in a row, a sentence three times, or more than 30 % of its 4-grams
    of words have been there before (in texts of at least 20 words).

    Where at least half of it is letters of scripts without spaces between words, the same holds of letters: two to
    eight six times in a row, a sentence of at least six three times, or 30 % of the 8-grams in texts of at least 40.
    No text without such letters is affected, and in none does a loop of words pass.
    """
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
    if len(words) >= 20 and _repeated(words, 4) > REPEATED_SHARE:
        return True
    return _LETTER.search(text) is not None and _letters_repeat(text.lower())


def _letters_repeat(text: str) -> bool:
    letters = _LETTERS.findall(text)
    if 2 * sum(_LETTER.match(letter) is not None for letter in letters) < len(letters):
        return False
    if _IN_A_ROW.search("".join(letters)):
        return True
    sentences = Counter(
        tuple(found) for part in _SENTENCE_OF_LETTERS.findall(text) if len(found := _LETTERS.findall(part)) >= 6
    )
    if sentences and max(sentences.values()) >= 3:
        return True
    # A word is some two letters of Chinese and four of Thai. The Universal Declaration of Human Rights, as formal as a
    # text gets, repeats at most 14 % of its 8-grams in these scripts, and 6 % of its 4-grams of words in English.
    return len(letters) >= 40 and _repeated(letters, 8) > REPEATED_SHARE


def _repeated(units: Sequence[str], n: int) -> float:
    """The share of the n-grams that have been there before."""
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


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
