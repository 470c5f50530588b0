"""``revisions``: do revisions become better, by a preference model's score? (Figures 5, 6 and 7 of the paper.)

The paper scores answers and revisions of 52B models with preference models of people's comparisons. Here it is the
run's own, which learnt from answers of the model that was trained on these very revisions, or better one of other data
(``heldout``). Branches whose ``revise`` differ, e.g. in critiques, are lines of one curve (Figure 7). Figure 6 varies
the number of principles between runs; one run shows its own chains by how many different ones each drew, which tells
less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cai_core.types.context import StageContext
from cai_core.types.evaluator import Curve, EvalInput, EvalRow, EvalUnit, Metric, Series
from cai_core.types.records import UnitFailure, conversation
from cai_core.types.reward import Exchange
from cai_plugins.evaluators.measures import by_model, mean
from cai_plugins.evaluators.plugin import RevisionsOptions

Chains = Mapping[str, Mapping[int, EvalRow]]


class Revisions:
    """An ``Evaluator`` of the chains. Units belong to the stage that made them; an id is chain/round, round 0 is the
    first answer."""

    def __init__(self, options: RevisionsOptions, context: StageContext) -> None:
        folder = options.heldout
        self.reward = context.reward_model(folder) if folder else context.component("reward_model")
        self.note = f"Preference model: {folder.name if folder else 'of this run'}; no unit."

    def units(self, given: EvalInput) -> Sequence[EvalUnit]:
        """One unit per text; a chain that broke off has one more, which failed."""
        found = []
        for chain in given.chains:
            base = {
                "prompt": [message.as_dict() for message in chain.prompt.messages],
                "chain": chain.id,
                "failure": None,
            }
            for number, text in enumerate(chain.texts):
                distinct = len(set(chain.principles[:number]))
                payload = {**base, "round": number, "text": text, "principles": distinct}
                found.append(EvalUnit(f"{chain.id}/{number}", chain.source, payload))
            if chain.failure:
                number = len(chain.texts)
                failure = {"kind": chain.failure.kind, "message": chain.failure.message}
                payload = {**base, "round": number, "text": "", "principles": 0, "failure": failure}
                found.append(EvalUnit(f"{chain.id}/{number}", chain.source, payload))
        return found

    def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        """``score``: the reward model's; ``chain``, ``round``, ``principles``: different ones so far."""
        asked = [unit for unit in units if not unit.payload["failure"]]
        scores = iter(
            self.reward.score(
                [Exchange(u.id, conversation(u.payload["prompt"]), str(u.payload["text"])) for u in asked]
            )
            if asked
            else ()
        )
        for unit in units:
            facts: dict[str, Any] = {key: unit.payload[key] for key in ("chain", "round", "principles")}
            if broken := unit.payload["failure"]:
                yield EvalRow(unit.id, unit.model, facts, UnitFailure(broken["kind"], broken["message"]))
            elif math.isfinite(score := next(scores)):
                yield EvalRow(unit.id, unit.model, {**facts, "score": score})
            else:
                yield EvalRow(unit.id, unit.model, facts, UnitFailure("infra", "the score is not a finite number"))

    def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
        """Per revision the mean gain over the first answer of the same chain, paired."""
        metrics = []
        for source, mine in by_model(rows).items():
            chains = _chains(mine)
            for number in sorted({round for chain in chains.values() for round in chain if round > 0}):
                gains = [_gain(chain, number) for chain in chains.values() if number in chain and 0 in chain]
                label = f"gain of revision {number} over the first answer"
                metrics.append(
                    mean(
                        f"revisions.gain.{number}",
                        label,
                        source,
                        gains,
                        "gain",
                        unit="score",
                        direction="higher",
                        note=self.note,
                        cluster=_prompts(gains),
                    )
                )
        return metrics

    def curves(self, rows: Sequence[EvalRow]) -> Sequence[Curve]:
        """``revisions.score`` by revision and ``revisions.by_principles``, a series for each stage that revised."""
        by_round, by_principles = [], []
        for source, mine in by_model(rows).items():
            chains = _chains(mine)
            points = {}
            for number in sorted({round for chain in chains.values() for round in chain}):
                there = [c[number] for c in chains.values() if number in c]
                points[number] = mean(
                    "", "", source, there, "score", unit="score", direction="none", cluster=_prompts(there)
                )
            by_round.append(_series(source, points))
            last: dict[int, list[EvalRow]] = {}
            for chain in chains.values():
                if 0 in chain and (end := max(n for n in chain)) > 0 and chain[end].failure is None:
                    last.setdefault(int(chain[end].values["principles"]), []).append(_gain(chain, end))
            by_principles.append(
                _series(
                    source,
                    {
                        n: mean("", "", source, some, "gain", unit="score", direction="none", cluster=_prompts(some))
                        for n, some in sorted(last.items())
                    },
                )
            )
        shown = "preference-model score (no unit)"
        curves = [
            Curve(
                "revisions.score", "Score by revision", "revision (0: first answer)", shown, tuple(by_round), self.note
            ),
            Curve(
                "revisions.by_principles",
                "Gain of the last revision, by principles drawn",
                "different principles in the chain",
                "gain over the first answer (no unit)",
                tuple(by_principles),
                f"{self.note} Within this run: the number drawn was not varied on purpose.",
            ),
        ]
        return [curve for curve in curves if any(series.x for series in curve.series)]


def _chains(rows: Sequence[EvalRow]) -> Chains:
    chains: dict[str, dict[int, EvalRow]] = {}
    for row in rows:
        if "chain" in row.values:
            chains.setdefault(str(row.values["chain"]), {})[int(row.values["round"])] = row
    return chains


def _gain(chain: Mapping[int, EvalRow], number: int) -> EvalRow:
    """The unit of a revision with its gain; failed where it or the first answer has no score."""
    row, first = chain[number], chain[0]
    failure = row.failure or first.failure
    values = {} if failure else {"gain": row.values["score"] - first.values["score"]}
    return EvalRow(row.id, row.model, values, failure)


def _prompts(rows: Sequence[EvalRow]) -> dict[str, str]:
    """Row id (prompt/copy/round) -> its prompt: several chains of one prompt are not independent."""
    return {row.id: row.id.rsplit("/", 2)[0] for row in rows}


def _series(name: str, points: Mapping[int, Metric]) -> Series:
    some = {x: m for x, m in points.items() if m.value is not None}
    return Series(
        name,
        tuple(float(x) for x in some),
        tuple(m.value for m in some.values() if m.value is not None),
        tuple(m.low for m in some.values()),
        tuple(m.high for m in some.values()),
        tuple(m.n for m in some.values()),
    )
