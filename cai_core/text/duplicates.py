"""Near-duplicates: texts whose sets of character 5-grams overlap, found without comparing every pair.

Texts are lower-cased and every run of other characters becomes one space, so that case, punctuation and layout do not
count; a text of signs alone is taken as it is, since nothing would be left of it. Similarity is the Jaccard index of
the sets of 5-grams (of their 32-bit hashes). Candidates come from MinHash with one permutation (Li, Owen and Zhang
2012) in bands, then the index is computed for each.
"""

from __future__ import annotations

import re
import sqlite3
import struct
import zlib
from array import array
from pathlib import Path

THRESHOLD = 0.8
"""Our choice: among the prompts of hh-rlhf, pairs above it are the same request with a word changed, pairs below 0.7
ask about something else in the same form; ``tests/benchmarks/near_duplicates.py`` prints pairs around it."""

# Our choice: at similarity 0.8 a pair shares no band once in 1,600 times; at 0.05, as unrelated English texts have, it
# shares one once in 11,000.
_BANDS, _ROWS = 14, 4
_BINS = _BANDS * _ROWS
# Our choices, so that texts of one mould (a template, a habit) do not make every search a search through all of them: a
# band that 256 texts share tells nothing, and of the candidates the 64 that share the most bands are looked at. At
# similarity 0.8 a pair shares 6 of 14 bands on average, at 0.6 fewer than 2.
_CROWD = 256
_LOOKED_AT = 64
_OTHER = re.compile(r"[\W_]+")


def grams(text: str) -> frozenset[int]:
    """Hashes of the character 5-grams of the normalised text; of the whole text if it is shorter."""
    plain = (_OTHER.sub(" ", text.lower()).strip() or text.strip()).encode("utf-8", "replace")
    crc32 = zlib.crc32
    return frozenset(crc32(plain[i : i + 5]) for i in range(max(1, len(plain) - 4)))


def similarity(a: str, b: str) -> float:
    """Jaccard index of the 5-grams, 0 to 1; 1 for texts with words that differ in case and punctuation only."""
    first, second = grams(a), grams(b)
    return len(first & second) / len(first | second)


class NearDuplicates:
    """An index of texts. With ``path`` it lives in a file there, so that memory stays constant; the file is made
    anew."""

    def __init__(self, path: Path | None = None, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        if path is not None:
            path.unlink(missing_ok=True)
        self._db = sqlite3.connect(str(path) if path else ":memory:", isolation_level=None)
        # A scratch file: after a crash it is made anew.
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE TABLE texts (id INTEGER PRIMARY KEY, name TEXT NOT NULL, grams BLOB NOT NULL)")
        self._db.execute("CREATE TABLE bands (key INTEGER NOT NULL, text INTEGER NOT NULL)")
        self._db.execute("CREATE INDEX bands_key ON bands(key)")

    def add(self, name: str, text: str) -> None:
        """Put a text into the index."""
        found = grams(text)
        self._add(name, found, _bands(found))

    def find(self, text: str) -> tuple[str, float] | None:
        """Name and similarity of the most similar text in the index, if it is at least ``threshold``; among equals
        the first that was added."""
        found = grams(text)
        return self._find(found, _bands(found))

    def add_new(self, name: str, text: str) -> tuple[str, float] | None:
        """``find``; and ``add`` if there is none."""
        found = grams(text)
        bands = _bands(found)
        near = self._find(found, bands)
        if near is None:
            self._add(name, found, bands)
        return near

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _add(self, name: str, found: frozenset[int], bands: list[int]) -> None:
        blob = array("I", sorted(found)).tobytes()
        number = self._db.execute(
            "INSERT INTO texts (name, grams) VALUES (?, ?)", (name.encode("utf-8", "replace").decode(), blob)
        ).lastrowid
        self._db.executemany(
            f"INSERT INTO bands (key, text) SELECT ?1, ?2 WHERE {_CROWD} > "
            f"(SELECT count(*) FROM (SELECT 1 FROM bands WHERE key = ?1 LIMIT {_CROWD}))",
            [(band, number) for band in bands],
        )

    def _find(self, found: frozenset[int], bands: list[int]) -> tuple[str, float] | None:
        marks = ",".join("?" * len(bands))
        query = (
            "SELECT name, grams FROM texts WHERE id IN (SELECT text FROM bands "
            f"WHERE key IN ({marks}) GROUP BY text ORDER BY count(*) DESC, text LIMIT {_LOOKED_AT}) ORDER BY id"
        )
        best: tuple[str, float] | None = None
        for name, blob in self._db.execute(query, bands):
            stored = array("I")
            stored.frombytes(blob)
            small, large = sorted((len(stored), len(found)))
            if small < self.threshold * large:
                continue
            common = len(found.intersection(stored))
            index = common / (small + large - common)
            if index >= self.threshold and (best is None or index > best[1]):
                best = (name, index)
        return best


def _bands(found: frozenset[int]) -> list[int]:
    bins = [-1] * _BINS
    for value in found:
        mixed = (value * 0x9E3779B1) & 0xFFFFFFFF
        place = mixed % _BINS
        if bins[place] < 0 or mixed < bins[place]:
            bins[place] = mixed
    # An empty bin takes the value of the next one that is not (Shrivastava and Li 2014).
    for i in range(2 * _BINS - 1, -1, -1):
        if bins[i % _BINS] < 0:
            bins[i % _BINS] = bins[(i + 1) % _BINS]
    return [
        (band << 32) | zlib.crc32(struct.pack(f"{_ROWS}I", *bins[band * _ROWS : (band + 1) * _ROWS]))
        for band in range(_BANDS)
    ]
