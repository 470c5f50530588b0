"""``preference_model``: a preference model scores the answers to held-out prompts.

The run's own is the score that RL raised, so a rise shows that RL worked and not that the model became better. For that
there is ``heldout``: a model of other comparisons (the paper's Figure 5 uses those; Bai et al. 2022a train two, on
either half of the data, and watch them part).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cai_core.types.context import StageContext
from cai_core.types.evaluator import EvalInput, EvalRow, EvalUnit, Metric
from cai_core.types.records import UnitFailure, conversation
from cai_core.types.reward import Exchange
from cai_plugins.evaluators.asking import answer_units
from cai_plugins.evaluators.measures import by_model, mean
from cai_plugins.evaluators.plugin import PreferenceModelOptions

NOTE = "No unit: only differences within this run mean anything. "
GROUPS = {"red_team": ("harmful", "harmful prompts"), "helpful": ("harmless", "harmless prompts")}
GROUP_OF = {"red_team": "red_team", "helpful": "helpful", "borderline": "helpful"}


class PreferenceModelScore:
    """An ``Evaluator`` of the models' answers with the run's reward model."""

    def __init__(self, options: PreferenceModelOptions, context: StageContext) -> None:
        heldout = options.heldout
        self.reward = context.reward_model(heldout) if heldout else context.component("reward_model")
        self.base, self.what = ("preference_model.heldout", "held-out ") if heldout else ("preference_model", "")
        self.note = NOTE + (f"Scored by {heldout.name}." if heldout else "RL was trained on this very score.")

    def units(self, given: EvalInput) -> Sequence[EvalUnit]:
        """One unit per answer."""
        return answer_units(given)

    def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        """``score``: the reward model's, no unit."""
        exchanges = [
            Exchange(unit.id, conversation(unit.payload["messages"]), str(unit.payload["answer"])) for unit in units
        ]
        for unit, score in zip(units, self.reward.score(exchanges), strict=True):
            if math.isfinite(score):
                yield EvalRow(unit.id, unit.model, {"score": score, "kind": unit.payload["kind"]})
            else:
                failure = UnitFailure("infra", "the score is not a finite number")
                yield EvalRow(unit.id, unit.model, {"kind": unit.payload["kind"]}, failure)

    def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
        """The mean score on harmful and on harmless prompts."""
        metrics = []
        for model, mine in by_model(rows).items():
            for group, (name, label) in GROUPS.items():
                some = [row for row in mine if GROUP_OF.get(str(row.values.get("kind"))) == group]
                metrics.append(
                    mean(
                        f"{self.base}.{name}",
                        f"{self.what}preference-model score, {label}",
                        model,
                        some,
                        "score",
                        unit="score",
                        direction="higher",
                        note=self.note,
                    )
                )
        return metrics
