"""Several reward models as one. Policies learn to please what one of them overrates; a minimum, or a mean less the
deviation, pays only for what all of them like (Coste et al. 2023)."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cai_core.errors import CAIError, UserError
from cai_core.types.context import StageContext
from cai_core.types.reward import Exchange, Preference, RewardModel
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.seeding import derived
from cai_plugins.rewards.agreement import agreement, check_labels, chosen, sides
from cai_plugins.rewards.plugin import EnsembleOptions

OURS = "cai-core/"
FILE = "ensemble.json"


class Ensemble:
    """See ``RewardModel``. Each member is fitted with a seed and checkpoint folder of its own and saved in a folder of
    its own, ``member-N``; ``ensemble.json`` has the options and each member's mean and standard deviation. With
    ``standardise`` scores are in standard deviations of the answers it was fitted on. All members are in memory."""

    def __init__(self, options: EnsembleOptions, context: StageContext) -> None:
        self.context = context
        self._use(options)
        self.scales: list[tuple[float, float]] = []

    def _use(self, options: EnsembleOptions) -> None:
        self.options = options
        counts: Counter[str] = Counter()
        self.names = []
        for member in options.members:
            name = member.reward_model.removeprefix(OURS)
            counts[name] += 1
            self.names.append(f"{name}-{counts[name]}")
        self.members: list[RewardModel] = [
            self.context.member(
                "reward_model", m.reward_model, m.model_extra or {}, _OwnContext(self.context, f"member-{i}")
            )
            for i, m in enumerate(options.members)
        ]

    def fit(self, model: Path, preferences: Sequence[Preference], out: Path) -> TrainResult:
        """Fit every member; then, over the answers of at most ``measure`` comparisons, set the scales and report
        ``agreement`` of all together and of each, ``disagreement`` (mean over the answers of the standard deviation
        over the members) and ``split`` (share of comparisons on whose better answer the members differ).

        The curve is the first member's that has one; all of them are in ``extra["curves"]``. Raises ``UserError`` when
        a member scores all those answers alike, so that it has no scale.
        """
        check_labels(preferences)
        some = chosen(preferences, self.options.measure)
        if not some:
            raise UserError("no comparison to fit on", where="reward_model")
        metrics: dict[str, float] = {}
        notes: list[str] = []
        curves: dict[str, Any] = {}
        for i, (name, member) in enumerate(zip(self.names, self.members, strict=True)):
            result = member.fit(model, preferences, out / f"member-{i}")
            metrics |= {f"{name}.{key}": value for key, value in result.metrics.items()}
            notes += [f"{name}: {note}" for note in result.notes]
            if result.curve:
                curves[name] = [dict(row) for row in result.curve]
        exchanges = sides(some)
        raw = [member.score(exchanges) for member in self.members]
        self.scales = [self._scale(name, scores) for name, scores in zip(self.names, raw, strict=True)]
        out.mkdir(parents=True, exist_ok=True)
        content = {"options": self.options.model_dump(mode="json"), "scales": self.scales}
        (out / FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")

        rows = self._rows(raw)
        metrics |= agreement(some, [self._combined(row) for row in rows])
        for name, scores in zip(self.names, raw, strict=True):
            if (found := agreement(some, scores)).get("agreement") is not None:
                metrics[f"{name}.agreement_measured"] = found["agreement"]
        metrics["disagreement"] = statistics.fmean(statistics.pstdev(row) for row in rows)
        metrics["split"] = statistics.fmean(
            len({(x > y) - (x < y) for x, y in zip(a, b, strict=True)}) > 1
            for a, b in zip(rows[::2], rows[1::2], strict=True)
        )
        if not self.options.standardise:
            notes.append("scores are not standardised: with members of different scales the widest decides")
        extra = {"curves": curves} if curves else {}
        return TrainResult(metrics=metrics, curve=next(iter(curves.values()), []), notes=notes, extra=extra)

    def load(self, path: Path) -> None:
        """Use the options, members and scales written in ``path``."""
        try:
            content = json.loads((path / FILE).read_text(encoding="utf-8"))
            options = EnsembleOptions.model_validate_json(json.dumps(content["options"]))
            scales = [(float(centre), float(scale)) for centre, scale in content["scales"]]
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise UserError(f"not what an ensemble's `fit` wrote: {error}", where=str(path / FILE)) from error
        if len(scales) != len(options.members) or not all(s > 0 and math.isfinite(c + s) for c, s in scales):
            raise UserError("the scales do not fit the members", where=str(path / FILE))
        self._use(options)
        for i, member in enumerate(self.members):
            member.load(path / f"member-{i}")
        self.scales = scales

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """See ``RewardModel``."""
        if not self.scales:
            raise CAIError("the reward model was neither fitted nor loaded")
        return [self._combined(row) for row in self._rows([member.score(exchanges) for member in self.members])]

    def _scale(self, name: str, scores: Sequence[float]) -> tuple[float, float]:
        """What is taken off a score, and what it is divided by."""
        if not self.options.standardise:
            return 0.0, 1.0
        deviation = statistics.pstdev(scores)
        if not deviation > 0:
            raise UserError(
                f"the member {name} gives all {len(scores)} answers the score {scores[0]:g}, so it has no scale",
                where="reward_model.members",
                hint="give it checks that tell the answers apart, leave it out, or set `standardise: false`",
            )
        return statistics.fmean(scores), deviation

    def _rows(self, raw: Sequence[Sequence[float]]) -> list[list[float]]:
        """Per answer the members' scores on the common scale."""
        return [
            [(value - centre) / scale for value, (centre, scale) in zip(values, self.scales, strict=True)]
            for values in zip(*raw, strict=True)
        ]

    def _combined(self, row: Sequence[float]) -> float:
        weights = [member.weight for member in self.options.members]
        return combine(row, weights, self.options.combine, self.options.deviations)


def combine(row: Sequence[float], weights: Sequence[float], how: str, deviations: float) -> float:
    """One score from the members' of one answer. Mean and variance are weighted, the variance over the members as they
    are (not as a sample of others); the minimum knows no weights."""
    if how == "minimum":
        return min(row)
    total = math.fsum(weights)
    mean = math.fsum(w * x for w, x in zip(weights, row, strict=True)) / total
    if how == "mean":
        return mean
    variance = math.fsum(w * (x - mean) ** 2 for w, x in zip(weights, row, strict=True)) / total
    return mean - deviations * math.sqrt(variance)


class _OwnContext:
    """The context with a seed and a checkpoint folder of its own."""

    def __init__(self, context: StageContext, name: str) -> None:
        self._context = context
        self.seed = derived(context.seed, name)
        self.workdir = context.workdir / name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
