"""``label``: AI preference labels, P(A preferred), with the principle drawn per comparison (section 4.1)."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cai_core.calibration import accuracy, brier, calibration_error, length_slope
from cai_core.errors import PluginError
from cai_core.pipeline.executor import LocalExecutor, Outcome, Unit
from cai_core.pipeline.job import Job
from cai_core.pipeline.stages.generate import CHUNK, failure_record
from cai_core.pipeline.stages.pairs import HUMAN, MIXTURE
from cai_core.pipeline.tables import LABELS, PAIRS
from cai_core.store.ledger import Row
from cai_core.store.tables import read_table, write_table
from cai_core.types.labeler import Comparison, Label
from cai_core.types.prompts import Prompt
from cai_core.types.records import conversation


class _Label:
    def __init__(self, job: Job, rows: Sequence[dict[str, Any]]) -> None:
        self.job = job
        self.pairs = rows
        self.labeler = job.component("labeler")
        self.principles = job.principles("comparison")
        self.rows: dict[str, Row] = {}
        self.drawn: dict[str, list[str]] = {}

    def initial(self) -> Iterable[Unit[Comparison]]:
        for pair in self.pairs:
            messages = conversation(pair["prompt"])
            prompt = Prompt(pair["id"], messages)
            rng = random.Random(self.job.unit_seed("principle", pair["id"], "label"))
            drawn = self.job.draw(self.principles, prompt, "comparison", 0, rng)
            self.drawn[pair["id"]] = [p.id for p in drawn]
            seed = self.job.unit_seed("label", pair["id"])
            comparison = Comparison(pair["id"], messages, pair["a"], pair["b"], tuple(drawn), seed)
            identity = {
                "unit": f"label/{pair['id']}",
                "prompt": pair["prompt"],
                "a": pair["a"],
                "b": pair["b"],
                "principles": [p.comparison for p in drawn],
                "constitution": self.job.constitution.digest,
                "labeler": self.job.component_identity("labeler"),
                "backend": self.job.component_identity("backend"),
                "model": self.job.model_digest("judge"),
                "seed": self.job.spec.seed,
            }
            yield Unit(pair["id"], identity, comparison)

    def run(self, units: Iterator[Unit[Comparison]]) -> Iterator[tuple[str, Outcome]]:
        for label in self.labeler.label([unit.work for unit in islice(units, CHUNK)]):
            yield label.id, label_outcome(label)

    def follow(self, unit: Unit[Comparison], row: Row) -> Iterable[Unit[Comparison]]:
        self.rows[unit.name] = row
        return ()


def label_outcome(label: Label) -> Outcome:
    """A label as an outcome; one that breaks the contract is the plugin's fault, never data."""
    payload = {"p_a": label.p_a, "evidence": dict(label.evidence), "tokens_in": label.evidence.get("tokens_in", 0)}
    if label.failure is None and (label.p_a is None or not 0 <= label.p_a <= 1):
        raise PluginError(f"the labeler gave p_a = {label.p_a!r} for {label.id!r}; it must lie in [0, 1]")
    return Outcome(payload, label.failure)


def run_label(job: Job, folder: Path) -> dict[str, Any]:
    """Writes ``labels.parquet``: every pair with its label or the reason why there is none."""
    source = job.input("pairs").path
    pairs = list(read_table(source / "pairs.parquet", PAIRS))
    human = json.loads((source / HUMAN).read_text(encoding="utf-8")) if (source / HUMAN).is_file() else {}
    mixture = json.loads((source / MIXTURE).read_text(encoding="utf-8")) if (source / MIXTURE).is_file() else {}
    stage = _Label(job, [pair for pair in pairs if not pair["failure"]])
    tally = LocalExecutor().run(stage, job.ledger(), job.progress, total=len(stage.pairs))
    rows = []
    for pair in pairs:
        row = stage.rows.get(pair["id"])
        if row is None:
            rows.append({**pair, "p_a": None})
            continue
        rows.append(
            {
                **pair,
                "p_a": row.payload["p_a"] if not row.failure else None,
                "principles": stage.drawn[pair["id"]],
                "evidence": {
                    **row.payload["evidence"],
                    **({"human": human[pair["id"]]} if pair["id"] in human else {}),
                    **mixture.get(pair["id"], {}),
                },
                "failure": failure_record(row.failure),
            }
        )
    write_table(folder / "labels.parquet", LABELS, rows)
    # A pair that never reached the judge says nothing of it; among the reasons for a missing label it counts.
    judged = label_statistics([row for row in rows if row["id"] in stage.rows])
    return {**tally.as_info(), "labels": {**judged, "failed": label_statistics(rows)["failed"]}}


def label_statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a reader must know about a set of labels: counts, entropy, position bias, flips, length preference.

    entropy: mean binary entropy in nats (0.693 = no opinion). position_bias: mean of P(first shown preferred) - 0.5.
    flip_rate: share of pairs whose preferred answer changes with the order. longer_preferred: share of pairs of
    unequal length whose longer answer has p > 0.5. length_slope: change of p when an answer is twice as long as the
    other. ties, refusals, unreadable: of all comparisons, those whose judge called a tie (a label of exactly 0.5
    counts too), refused, or could not be read, as a rate. disagreement: mean standard deviation over the principles
    or members of one comparison. human: accuracy, calibration error and Brier score against people's labels, where
    there are any. All null without labels.
    """
    labelled = [row for row in rows if row.get("p_a") is not None]
    failed: dict[str, int] = defaultdict(int)
    for row in rows:
        if row.get("failure"):
            failed[row["failure"]["kind"]] += 1
    both = [row for row in labelled if _orders(row) is not None]
    unequal = [row for row in labelled if len(row["a"]) != len(row["b"])]
    longer = [(row["p_a"] > 0.5) == (len(row["a"]) > len(row["b"])) for row in unequal if row["p_a"] != 0.5]
    by_principle: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in labelled:
        for principle in row.get("principles") or ():
            by_principle[principle].append(row)
    judged = [row for row in rows if row.get("p_a") is not None or row.get("failure")]
    ties = [row["p_a"] == 0.5 if row.get("p_a") is not None else _said_tie(row) for row in judged]
    unreadable = [_failed(row, "unparseable") and not _said_tie(row) for row in judged]
    p, a, b = ([row[key] for row in labelled] for key in ("p_a", "a", "b"))
    return {
        "n": len(labelled),
        "tie_rate": _mean([float(tie) for tie in ties]),
        "refusal_rate": _mean([float(_failed(row, "refusal")) for row in judged]),
        "unreadable_rate": _mean([float(value) for value in unreadable]),
        "length_slope": length_slope(p, a, b),
        "disagreement": _mean(
            [row["evidence"]["disagreement"] for row in labelled if "disagreement" in (row.get("evidence") or {})]
        ),
        "human": _against_people(labelled),
        "failed": dict(sorted(failed.items())),
        "entropy": _mean([_entropy(row["p_a"]) for row in labelled]),
        "mean_p": _mean([row["p_a"] for row in labelled]),
        "mean_gap": _mean([abs(row["p_a"] - 0.5) for row in labelled]),
        "mass": _mean([row["evidence"]["mass"] for row in labelled if "mass" in (row.get("evidence") or {})]),
        "position_bias": _mean([_bias(row) for row in both]),
        "flip_rate": _mean([_flips(row) for row in both]),
        "longer_preferred": _mean([float(value) for value in longer]),
        "by_principle": [
            {
                "id": principle,
                "n": len(group),
                "mean_gap": _mean([abs(row["p_a"] - 0.5) for row in group]),
                "flip_rate": _mean([_flips(row) for row in group if _orders(row) is not None]),
                "human_accuracy": (_against_people(group) or {}).get("accuracy"),
            }
            for principle, group in sorted(by_principle.items())
        ],
    }


def _against_people(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    known = [row for row in rows if "human" in (row.get("evidence") or {})]
    if not known:
        return None
    p, target = [row["p_a"] for row in known], [row["evidence"]["human"] for row in known]
    return {
        "n": len(known),
        "accuracy": accuracy(p, target),
        "calibration_error": calibration_error(p, target),
        "brier": brier(p, target),
    }


def _failed(row: Mapping[str, Any], kind: str) -> bool:
    return bool(row.get("failure")) and row["failure"]["kind"] == kind


def _said_tie(row: Mapping[str, Any]) -> bool:
    return bool((row.get("evidence") or {}).get("tie"))


def _orders(row: Mapping[str, Any]) -> tuple[float, float] | None:
    evidence = row.get("evidence") or {}
    if "p_a_first" in evidence and "p_a_second" in evidence:
        return float(evidence["p_a_first"]), float(evidence["p_a_second"])
    return None


def _bias(row: Mapping[str, Any]) -> float:
    first, second = _orders(row) or (0.5, 0.5)
    return (first + (1 - second)) / 2 - 0.5


def _flips(row: Mapping[str, Any]) -> float:
    first, second = _orders(row) or (0.5, 0.5)
    return float((first > 0.5) != (second > 0.5))


def _entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


