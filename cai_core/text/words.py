"""Which texts speak of the same things: TF-IDF over stemmed words, without any library (Salton and Buckley 1988)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

_WORD = re.compile(r"[^\W\d_]{3,}")
# Words that say nothing about the subject, and those that every principle has.
_STOP = frozenset(
    _WORD.findall(
        """
        the and for are but not you all any can had her was one our out has him his how its may new now old see two
        way who did get let put say she too use that with have this will your from they know want been good much
        some time very when come here just like long make many more only over such take than them well were what
        which would there their about could other into then these because most where after also did being does doing
        each few further itself nor off once own same should those through under until while whom why assistant
        assistants response responses respond last specific ways way identify rewrite please choose option human
        user users answer answers model conversation content whether remove less least point explain
        """
    )
)
_ENDINGS = (
    "ations", "ation", "ingly", "ities", "ments", "ness", "ment", "ings", "ions", "able", "ible", "ally", "ity", "ing",
    "ion", "ies", "ous", "ful", "ive", "est", "ed", "es", "ly", "s", "e", "y",
)  # fmt: skip


def stems(text: str) -> list[str]:
    """The words that carry meaning, lower case, without common English endings."""
    return [_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP]


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


class Relevance:
    """How much a text speaks of each of some subjects."""

    def __init__(self, subjects: Sequence[str]) -> None:
        counted = [Counter(stems(subject)) for subject in subjects]
        held = Counter(word for count in counted for word in count)
        self._idf = {word: math.log(1 + len(subjects) / n) for word, n in held.items()}
        self._vectors = [self._vector(count) for count in counted]

    def scores(self, text: str) -> list[float]:
        """Cosine similarity with each subject, 0 to 1; 0 where no word is in common."""
        vector = self._vector({word: n for word, n in Counter(stems(text)).items() if word in self._idf})
        return [sum(weight * other.get(word, 0.0) for word, weight in vector.items()) for other in self._vectors]

    def _vector(self, counts: Mapping[str, int]) -> dict[str, float]:
        weights = {word: (1 + math.log(n)) * self._idf[word] for word, n in counts.items()}
        norm = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {word: weight / norm for word, weight in weights.items()}
