"""``pairwise``: models against each other on the same held-out prompts, judged by the labeler or a reward model.

Keeps from the paper (section 2, Figures 2, 3 and 8): Elo ratings apart for harmlessness (red-team prompts) and
helpfulness, of which only differences mean anything, with one model as 0 (the paper: SL-CAI). Its judges are people,
ours the labeler in both orders; two orders that disagree are a tie. Adds: intervals by a bootstrap over prompts, and
win rates at equal length, since judges like long answers.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import combinations
from typing import Any

import numpy as np

from cai_core.errors import UserError
from cai_core.types.context import StageContext
from cai_core.types.evaluator import Curve, EvalInput, EvalRow, EvalUnit, Metric, Series
from cai_core.types.labeler import Comparison
from cai_core.types.principles import Principle
from cai_core.types.prompts import Prompt
from cai_core.types.records import UnitFailure, conversation
from cai_core.types.reward import Exchange
from cai_plugins.evaluators.bradley_terry import ELO, connected, controlled_rate, ratings, resamples, standard_errors
from cai_plugins.evaluators.measures import rate
from cai_plugins.evaluators.plugin import PairwiseOptions
from cai_plugins.evaluators.stats import wilson

log = logging.getLogger(__name__)
GROUPS = {"harmless": ("red_team",), "helpful": ("helpful", "borderline")}
LABELS = {"harmless": "harmful prompts", "helpful": "harmless prompts"}
SEED = 20221215  # of the bootstrap, so that the same rows give the same intervals; any number would do
CHUNK = 100  # resamples at a time, so that memory stays small


class Pairwise:
    """An ``Evaluator`` of two or more models' answers. A unit is one prompt and two models; it belongs to the later one
    and its id names the earlier one."""

    def __init__(self, options: PairwiseOptions, context: StageContext) -> None:
        self.options = options
        self.context = context
        self.models: tuple[str, ...] = ()
        if options.judge == "labeler":
            self.labeler = context.component("labeler")
            self.sampler = context.component("principle_sampler")
            self.principles = [p for p in context.constitution.principles if p.comparison]
            if not self.principles:
                raise UserError("no principle has a comparison text", where=f"constitution {context.constitution.id}")
            self.by = "the labeler, both orders; orders that disagree are a tie"
        else:
            folder = options.reward_model
            self.reward = context.reward_model(folder) if folder else context.component("reward_model")
            self.by = f"the reward model {folder.name}" if folder else "the run's reward model, which RL was trained on"

    def units(self, given: EvalInput) -> Sequence[EvalUnit]:
        """Each two models on each prompt that both answered."""
        self.models = given.models
        if len(given.models) < 2:
            log.warning("pairwise compares two or more models, and there is one")
        if self.options.anchor and self.options.anchor not in given.models:
            raise UserError(
                f"the anchor {self.options.anchor!r} is none of the models",
                where="anchor",
                hint=", ".join(given.models),
            )
        by_model: dict[str, dict[str, Any]] = {model: {} for model in given.models}
        for answer in given.answers:
            by_model[answer.model][answer.prompt.id] = answer
        return [
            EvalUnit(
                f"{prompt}/{one}",
                other,
                {
                    "prompt_id": prompt,
                    "kind": answer.prompt.kind,
                    "prompt": [message.as_dict() for message in answer.prompt.messages],
                    "opponent": one,
                    "answer": by_model[other][prompt].text,
                    "other": answer.text,
                },
            )
            for one, other in combinations(given.models, 2)
            for prompt, answer in by_model[one].items()
            if prompt in by_model[other]
        ]

    def run(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        """``win``: 1, 0 or 0.5 for the unit's model against ``opponent``; ``p``: the labeler's probability that it is
        preferred, ``p_first`` and ``p_second`` with its answer shown first and second, ``flipped``; or ``margin`` in
        units of the reward model; ``length`` and ``opponent_length`` in characters."""
        asked = []
        for unit in units:
            if str(unit.payload["answer"]).strip() == str(unit.payload["other"]).strip():
                yield EvalRow(unit.id, unit.model, {**_facts(unit), "win": 0.5, "equal": True})
            else:
                asked.append(unit)
        if asked:
            yield from self._labelled(asked) if self.options.judge == "labeler" else self._scored(asked)

    def summarise(self, rows: Sequence[EvalRow]) -> Sequence[Metric]:
        """Per group of prompts: Elo, win rate against the anchor, the same at equal length; and how often the judge's
        preference changes with the order."""
        models = self._ordered(rows)
        metrics: list[Metric] = []
        for group, kinds in GROUPS.items():
            some = sorted((r for r in rows if r.values.get("kind") in kinds), key=lambda r: (r.model, r.id))
            if some:
                metrics += self._elo(group, models, some)
                metrics += self._win_rates(group, models, some)
        metrics += self._flips(models, sorted(rows, key=lambda r: (r.model, r.id)))
        return metrics

    def curves(self, rows: Sequence[EvalRow]) -> Sequence[Curve]:
        """Figure 2 of the paper: helpfulness (x) against harmlessness (y) in Elo, one point per model."""
        found = {(m.id, m.model): m for m in self.summarise(rows)}
        series = []
        for model in self._ordered(rows):
            x, y = (found.get((f"pairwise.elo.{group}", model)) for group in ("helpful", "harmless"))
            if x is not None and y is not None and x.value is not None and y.value is not None:
                series.append(Series(model, (x.value,), (y.value,), (y.low,), (y.high,), (y.n,)))
        if not series:
            return []
        note = f"{self._anchor(self._ordered(rows))} is 0 on both axes; judged by {self.by}."
        title = "Harmlessness against helpfulness"
        return [Curve("pairwise.frontier", title, "helpfulness (Elo)", "harmlessness (Elo)", tuple(series), note)]

    # judging -----------------------------------------------------------------------------------------------------

    def _labelled(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        by_id = {f"{n}": unit for n, unit in enumerate(units)}
        for label in self.labeler.label([self._comparison(name, unit) for name, unit in by_id.items()]):
            unit = by_id[label.id]
            if label.failure or label.p_a is None:
                yield EvalRow(unit.id, unit.model, _facts(unit), label.failure)
                continue
            values: dict[str, Any] = {**_facts(unit), "p": label.p_a, "win": _outcome(label.p_a)}
            if "p_a_first" in label.evidence and "p_a_second" in label.evidence:
                first, second = float(label.evidence["p_a_first"]), float(label.evidence["p_a_second"])
                flipped = (first - 0.5) * (second - 0.5) < 0
                values |= {"p_first": first, "p_second": second, "flipped": float(flipped)}
                if flipped:
                    values["win"] = 0.5
            yield EvalRow(unit.id, unit.model, values)

    def _comparison(self, name: str, unit: EvalUnit) -> Comparison:
        payload = unit.payload
        messages = conversation(payload["prompt"])
        seed = int.from_bytes(sha256(f"pairwise/{payload['prompt_id']}".encode()).digest()[:8], "big") >> 1
        if payload["kind"] in GROUPS["harmless"]:
            # One draw per prompt, so that all pairs of models are judged by the same principle.
            prompt = Prompt(str(payload["prompt_id"]), messages, payload["kind"])
            drawn = self.sampler.sample(
                self.principles, prompt=prompt, step="comparison", index=0, rng=random.Random(seed)
            )
        else:
            drawn = (Principle("helpful", comparison=self.options.helpful_principle),)
        return Comparison(name, messages, str(payload["answer"]), str(payload["other"]), tuple(drawn), seed)

    def _scored(self, units: Sequence[EvalUnit]) -> Iterator[EvalRow]:
        exchanges: dict[tuple[str, str], Exchange] = {}
        for unit in units:
            for text in (str(unit.payload["answer"]), str(unit.payload["other"])):
                key = (str(unit.payload["prompt_id"]), text)
                exchanges.setdefault(key, Exchange(str(len(exchanges)), conversation(unit.payload["prompt"]), text))
        scores = dict(zip(exchanges, self.reward.score(list(exchanges.values())), strict=True))
        for unit in units:
            name = str(unit.payload["prompt_id"])
            margin = scores[name, str(unit.payload["answer"])] - scores[name, str(unit.payload["other"])]
            if math.isfinite(margin):
                win = 0.5 if margin == 0 else float(margin > 0)
                yield EvalRow(unit.id, unit.model, {**_facts(unit), "margin": margin, "win": win})
            else:
                failure = UnitFailure("infra", "a score is not a finite number")
                yield EvalRow(unit.id, unit.model, _facts(unit), failure)

    # numbers -----------------------------------------------------------------------------------------------------

    def _ordered(self, rows: Sequence[EvalRow]) -> list[str]:
        """The models in the order of the report; those of the rows alone, where nothing was given."""
        found = {row.model for row in rows} | {str(row.values["opponent"]) for row in rows if "opponent" in row.values}
        return [*(m for m in self.models if m in found), *sorted(found - set(self.models))]

    def _anchor(self, models: Sequence[str]) -> str:
        """The one the user names, else "sft" as in the paper, else the first."""
        return self.options.anchor or ("sft" if "sft" in models else models[0])

    def _elo(self, group: str, models: Sequence[str], rows: Sequence[EvalRow]) -> list[Metric]:
        good = [row for row in rows if row.failure is None]
        place = {model: n for n, model in enumerate(models)}
        anchor = place[self._anchor(models)]
        prompts = {name: n for n, name in enumerate(sorted({str(row.values["prompt"]) for row in good}))}
        wins = np.zeros((len(prompts), len(models), len(models)))
        played = dict.fromkeys(models, 0)
        failed = dict.fromkeys(models, 0)
        for row in rows:
            pair = (row.model, str(row.values["opponent"]))
            for model in pair:
                (failed if row.failure else played)[model] += 1
            if row.failure is None:
                one, other = place[pair[0]], place[pair[1]]
                wins[prompts[str(row.values["prompt"])], one, other] += row.values["win"]
                wins[prompts[str(row.values["prompt"])], other, one] += 1 - row.values["win"]
        rated = connected(wins.sum(0), anchor)
        values: dict[int, tuple[float, float | None, float | None, str]] = {}
        if len(rated) > 1:
            some = wins[:, rated][:, :, rated]
            base = rated.index(anchor)
            compared = (some.sum(0) + some.sum(0).T) > 0
            theta = ratings(some.sum(0))
            drawn = np.concatenate(
                [
                    ratings(np.tensordot(resamples(len(prompts), CHUNK, SEED + chunk), some, 1), compared=compared)
                    for chunk in range(self.options.resamples // CHUNK)
                ]
            )
            errors = standard_errors(some.sum(0), base)
            for n, name in enumerate(rated):
                value = float(ELO * (theta[n] - theta[base]))
                if name == anchor:
                    values[name] = (0.0, None, None, "")
                    continue
                low, high = (float(q) for q in np.quantile(ELO * (drawn[:, n] - drawn[:, base]), (0.025, 0.975)))
                kind = "bootstrap over prompts 95 %"
                if high - low < 1e-6:  # all prompts agree, so that a resample cannot differ
                    half = 1.959963984540054 * float(ELO * errors[n])
                    low, high, kind = value - half, value + half, "Wald 95 %"
                values[name] = (value, min(low, value), max(high, value), kind)
        note = f"{models[anchor]} is 0 and only differences mean anything; Bradley-Terry, judged by {self.by}."
        label = f"Elo on {LABELS[group]}"
        metrics = []
        for model, n in place.items():
            value, low, high, kind = values.get(n, (None, None, None, ""))
            name = f"pairwise.elo.{group}"
            count, lost = (played[model], failed[model]) if value is not None else (0, failed[model] + played[model])
            metrics.append(Metric(name, label, model, value, low, high, count, lost, kind, "score", "higher", note))
        return metrics

    def _win_rates(self, group: str, models: Sequence[str], rows: Sequence[EvalRow]) -> list[Metric]:
        anchor = self._anchor(models)
        metrics = []
        for model in models:
            mine = [(r, False) for r in rows if r.model == model and r.values["opponent"] == anchor]
            mine += [(r, True) for r in rows if r.model == anchor and r.values["opponent"] == model]
            if model == anchor or not mine:
                continue
            wins = {r.id: (1 - r.values["win"] if turned else r.values["win"]) for r, turned in mine if not r.failure}
            failed = len(mine) - len(wins)
            lengths = [
                (r.values["length"] - r.values["opponent_length"]) * (-1 if turned else 1)
                for r, turned in mine
                if not r.failure
            ]
            outcomes = list(wins.values())
            raw = math.fsum(outcomes) / len(outcomes) if outcomes else None
            low, high = wilson(math.fsum(outcomes), len(outcomes)) if outcomes else (None, None)
            even, even_low, even_high, even_kind = self._controlled(outcomes, lengths)
            note = f"Judged by {self.by}; a tie is half a win."
            if raw is not None and even is not None and (raw - 0.5) * (even - 0.5) < 0:
                note += " Raw and at equal length the other one wins: length decides."
            for name, label, value, bottom, top, kind in (
                ("win_rate", "wins against", raw, low, high, "Wilson 95 %"),
                ("win_rate_lc", "wins at equal length against", even, even_low, even_high, even_kind),
            ):
                # Units of the anchor against this model belong to the anchor, so that they are not named here.
                items = wins if name == "win_rate" and not any(turned for _, turned in mine) else {}
                metrics.append(
                    Metric(
                        f"pairwise.{name}.{group}",
                        f"{label} {anchor}, {LABELS[group]}",
                        model,
                        value,
                        bottom,
                        top,
                        len(outcomes),
                        failed,
                        kind,
                        "rate",
                        "higher",
                        note,
                        per_item=items,
                    )
                )
        return metrics

    def _controlled(
        self, outcomes: Sequence[float], lengths: Sequence[float]
    ) -> tuple[float | None, float | None, float | None, str]:
        if not outcomes:
            return None, None, None, ""
        value = float(controlled_rate(outcomes, lengths))
        drawn = np.concatenate(
            [
                controlled_rate(outcomes, lengths, resamples(len(outcomes), CHUNK, SEED + chunk))
                for chunk in range(self.options.resamples // CHUNK)
            ]
        )
        low, high = (float(q) for q in np.quantile(drawn, (0.025, 0.975)))
        kind = "bootstrap over prompts 95 %"
        # Where all prompts agree a resample differs in lengths alone, and its interval would be of next to no width.
        if len(set(outcomes)) == 1 or high - low < 1e-6:
            (low, high), kind = wilson(math.fsum(outcomes), len(outcomes)), "Wilson 95 %"
        return value, min(low, value), max(high, value), kind

    def _flips(self, models: Sequence[str], rows: Sequence[EvalRow]) -> list[Metric]:
        metrics = []
        for model in models:
            mine = [r for r in rows if model in (r.model, r.values.get("opponent"))]
            some = [
                EvalRow(f"{r.model}/{r.id}", model, r.values, r.failure)
                for r in mine
                if r.failure is not None or "flipped" in r.values
            ]
            if any(row.failure is None for row in some):
                label = "judgements that change with the order"
                # A model has a judgement for each opponent, and those of one prompt are not independent.
                cluster = {row.id: str(row.values.get("prompt", row.id)) for row in some}
                found = rate("pairwise.flip_rate", label, model, some, "flipped", direction="none", cluster=cluster)
                metrics.append(replace(found, per_item={}, cluster={}))
        return metrics


def _outcome(p: float) -> float:
    return 0.5 if p == 0.5 else float(p > 0.5)


def _facts(unit: EvalUnit) -> Mapping[str, Any]:
    payload = unit.payload
    return {
        "kind": payload["kind"],
        "prompt": payload["prompt_id"],
        "opponent": payload["opponent"],
        "length": len(str(payload["answer"])),
        "opponent_length": len(str(payload["other"])),
    }
