"""Several labelers, or one labeler with several models, as one."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from cai_core.types.backend import Backend
from cai_core.types.context import StageContext
from cai_core.types.labeler import Comparison, Label, Labeler
from cai_core.types.records import UnitFailure
from cai_plugins.labelers.plugin import EnsembleOptions

OURS = "cai-core/"


class EnsembleLabeler:
    """The mean of its members' probabilities (not of their logarithms), and how much they disagree.

    Members are asked one after the other, so that one model at a time is in memory. A comparison that fewer members
    than ``least`` can label fails with the first member's failure.
    """

    def __init__(self, options: EnsembleOptions, context: StageContext) -> None:
        self.least = len(options.members) if options.least is None else options.least
        names: Counter[str] = Counter()
        self.members: dict[str, Labeler] = {}
        for member in options.members:
            name = f"{member.labeler.removeprefix(OURS)}@{member.role}"
            names[name] += 1
            name += f"#{names[name]}" if names[name] > 1 else ""
            given = member.model_extra or {}
            self.members[name] = context.member("labeler", member.labeler, given, _WithRole(context, member.role))

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        """See ``Labeler``."""
        found: dict[str, dict[str, Label]] = {c.id: {} for c in comparisons}
        for name, member in self.members.items():
            for label in member.label(comparisons):
                found[label.id][name] = label
        for comparison in comparisons:
            yield self._label(comparison.id, found[comparison.id])

    def _label(self, name: str, labels: dict[str, Label]) -> Label:
        good = {member: label for member, label in labels.items() if label.p_a is not None}
        evidence: dict[str, Any] = {
            "tokens_in": sum(int(label.evidence.get("tokens_in", 0)) for label in labels.values()),
            "members": {member: label.p_a for member, label in labels.items()},
        }
        if len(good) < self.least:
            member, failed = next((m, label) for m, label in labels.items() if label.failure)
            assert failed.failure is not None
            failure = UnitFailure(failed.failure.kind, f"{member}: {failed.failure.message}")
            return Label(name, None, evidence | {"tie": bool(failed.evidence.get("tie"))}, failure)
        values = [float(label.p_a) for label in good.values() if label.p_a is not None]
        evidence["disagreement"] = statistics.pstdev(values)
        for key in ("p_a_first", "p_a_second", "mass"):
            if all(key in label.evidence for label in good.values()):
                evidence[key] = statistics.fmean(label.evidence[key] for label in good.values())
        # Distances from one half, so that swapping gives exactly 1 - p.
        return Label(name, 0.5 + sum(value - 0.5 for value in values) / len(values), evidence)


class _WithRole:
    """The context in which the judge is the model of another role."""

    def __init__(self, context: StageContext, role: str) -> None:
        self._context = context
        self._role = role

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def backend(self, role: str) -> Backend:
        return self._context.backend(self._role if role == "judge" else role)
