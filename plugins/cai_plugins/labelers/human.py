"""Labels that people gave, read from a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from cai_core.text.pairs import labelled_pairs
from cai_core.types.labeler import Comparison, Label
from cai_core.types.records import Conversation, UnitFailure

Pair = tuple[Conversation, str, str]


class HumanLabeler:
    """Looks each pair up by its conversation and answers, in either order; several labels of one pair are averaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[Pair, list[float]] = defaultdict(list)
        for pair in labelled_pairs(path):
            assert pair.p_a is not None, "labelled_pairs returned it"
            self.found[pair.prompt, pair.a, pair.b].append(pair.p_a)

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        """See ``Labeler``. A pair without a label fails."""
        for c in comparisons:
            there = self.found.get((c.prompt, c.response_a, c.response_b), [])
            back = self.found.get((c.prompt, c.response_b, c.response_a), [])
            if c.response_a == c.response_b and there:
                yield Label(c.id, 0.5, {"labels": len(there)})
            elif there or back:
                # 1 - p is exact in both directions when the mean is taken of distances from one half.
                total = sum(p - 0.5 for p in there) - sum(p - 0.5 for p in back)
                count = len(there) + len(back)
                yield Label(c.id, 0.5 + total / count, {"labels": count})
            else:
                yield Label(c.id, None, failure=UnitFailure("unparseable", f"no label in {self.path.name}"))
