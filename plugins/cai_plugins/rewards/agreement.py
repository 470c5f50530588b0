"""What reward models that do not learn say about labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cai_core.errors import UserError
from cai_core.types.reward import Exchange, Preference


def check_labels(preferences: Sequence[Preference]) -> None:
    """``UserError`` on a label that is no probability."""
    for p in preferences:
        if not 0 <= p.p_a <= 1:  # false for NaN too
            raise UserError(f"p_a is {p.p_a}; it must be a probability", where=f"comparison {p.id!r}")


def chosen(preferences: Sequence[Preference], count: int) -> list[Preference]:
    """At most ``count`` of them, by hash of their content: order and company do not matter."""
    return sorted(preferences, key=_rank)[:count]


def sides(preferences: Sequence[Preference]) -> list[Exchange]:
    """A and B of each, one after the other."""
    return [
        Exchange(f"{p.id}/{side}", p.prompt, text)
        for p in preferences
        for side, text in (("a", p.response_a), ("b", p.response_b))
    ]


def agreement(preferences: Sequence[Preference], scores: Sequence[float]) -> dict[str, float]:
    """``agreement``: share of the decided labels (p_a not 0.5) whose better answer scores higher, a tie counting half;
    ``agreement_n``: their number. ``scores`` as ``sides`` lists the answers."""
    right = []
    for p, a, b in zip(preferences, scores[::2], scores[1::2], strict=True):
        if p.p_a != 0.5:
            right.append(0.5 if a == b else float((a > b) == (p.p_a > 0.5)))
    found = {"agreement_n": float(len(right))}
    if right:
        found["agreement"] = sum(right) / len(right)
    return found


def _rank(p: Preference) -> str:
    text = repr((p.id, [(m.role, m.content) for m in p.prompt], p.response_a, p.response_b))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
