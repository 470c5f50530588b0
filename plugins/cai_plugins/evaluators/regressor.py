"""A rating learnt from labelled texts with L2 loss: ridge regression on hashed words and pairs of words, or on other
features of a text, such as a model's hidden states.

The paper fits a language model with L2 loss to the 0-4 ratings of red-teamers (section 4.5). This is its plain
stand-in: on words it learns in seconds and knows words, not meaning. ``fit`` keeps a fifth of the texts out and says
how well they are predicted, so that nobody has to trust it.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np

DIMENSIONS = 2048  # our choice: a few thousand labelled texts do not support more
MOST = 10_000  # texts that are learnt from, those with the lowest hash: 160 MB of numbers; our choice
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
FOLDS = 5
Features = Callable[[Sequence[str]], Any]
"""Texts -> one row of numbers each."""
_WORD = re.compile(r"\w+(?:'\w+)*")


@dataclass(frozen=True, slots=True)
class Fitted:
    """Weights and constant; ``r2`` and ``rmse`` on the ``heldout`` texts that were not learnt from (r2 of 0: no better
    than their mean; below: worse)."""

    weights: Any
    constant: float
    lowest: float
    highest: float
    n: int
    heldout: int
    r2: float
    rmse: float
    features: Features

    def predict(self, texts: Sequence[str]) -> list[float]:
        """A rating per text, within the range of the labels."""
        found = self.features(texts) @ self.weights + self.constant
        return [float(value) for value in np.clip(found, self.lowest, self.highest)]


def fit(texts: Sequence[str], ratings: Sequence[float], read: Features | None = None) -> Fitted:
    """Learn ratings from at least 20 texts, and at most ``MOST``.

    read: gives features in place of the words; they are brought to one scale, that of the texts learnt from. The hash
    of a text decides whether it is kept out, and its fold for choosing the penalty. Raises ``ValueError`` where there
    are too few texts, or all ratings are equal.
    """
    if len(texts) < 20 or len(set(ratings)) < 2:
        raise ValueError("a rating is learnt from at least 20 texts whose ratings differ")
    place = np.array([int.from_bytes(sha256(text.encode("utf-8", "replace")).digest()[:4], "big") for text in texts])
    if len(texts) > MOST:
        kept = np.sort(np.argsort(place, kind="stable")[:MOST])
        texts, ratings, place = [texts[n] for n in kept], [ratings[n] for n in kept], place[kept]
    out = place % 5 == 0
    if out.sum() < 2 or (~out).sum() < FOLDS:
        out = np.arange(len(texts)) % 5 == 0
    known = ~out
    features, y = (read or _features)(texts), np.asarray(ratings, dtype=float)
    scale = np.ones(features.shape[1])
    if read is not None:  # then rows have a length of about 1, as those of words have
        spread = features[known].std(0)
        scale = np.where(spread > 0, spread, 1.0) * math.sqrt(features.shape[1])
    features = features / scale
    fold = (place // 5) % FOLDS
    errors = []
    for penalty in PENALTIES:
        total = 0.0
        for number in range(FOLDS):
            own, other = known & (fold != number), known & (fold == number)
            if own.sum() > 1 and other.any():
                weights, constant = _ridge(features[own], y[own], penalty)
                total += float(((features[other] @ weights + constant - y[other]) ** 2).sum())
        errors.append(total)
    weights, constant = _ridge(features[known], y[known], PENALTIES[int(np.argmin(errors))])
    lowest, highest = float(y.min()), float(y.max())
    predicted = np.clip(features[out] @ weights + constant, lowest, highest)
    squares, variance = float(((predicted - y[out]) ** 2).mean()), float(y[out].var())
    r2 = 1 - squares / variance if variance > 0 else 0.0
    return Fitted(
        weights / scale,
        constant,
        lowest,
        highest,
        int(known.sum()),
        int(out.sum()),
        r2,
        math.sqrt(squares),
        read or _features,
    )


def _ridge(features: Any, y: Any, penalty: float) -> tuple[Any, float]:
    """Weights and constant that minimise the squared error plus ``penalty`` times the squared weights."""
    centre, mean = features.mean(0), y.mean()
    centred = features - centre
    count = features.shape[1]
    if len(y) < count:  # the same solution by the smaller matrix
        dual = np.linalg.solve(centred @ centred.T + penalty * np.eye(len(y)), y - mean)
        weights = centred.T @ dual
    else:
        weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(count), centred.T @ (y - mean))
    return weights, float(mean - centre @ weights)


def _features(texts: Sequence[str]) -> Any:
    """log(1 + count) of hashed words and neighbouring pairs, each row of length 1."""
    found = np.zeros((len(texts), DIMENSIONS))
    for row, text in enumerate(texts):
        words = _WORD.findall(text.lower())
        for term in (*words, *(f"{one} {other}" for one, other in pairwise(words))):
            found[row, zlib.crc32(term.encode("utf-8", "replace")) % DIMENSIONS] += 1
    found = np.log1p(found)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
