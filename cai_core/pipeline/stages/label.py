"""``label``: AI preference labels, P(A preferred), with the principle drawn per comparison (section 4.1)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cai_core.errors import PluginError
from cai_core.pipeline.executor import LocalExecutor, Outcome, Tally, Unit
from cai_core.pipeline.job import Job
from cai_core.pipeline.labels import by_people, label_statistics, label_warnings
from cai_core.pipeline.stages.generate import CHUNK, failure_record, windows
from cai_core.pipeline.stages.pairs import HUMAN, MIXTURE
from cai_core.pipeline.tables import LABELS, PAIRS
from cai_core.store.ledger import Row
from cai_core.store.tables import read_table, write_table
from cai_core.types.labeler import GIVEN, Comparison, Label
from cai_core.types.prompts import Prompt
from cai_core.types.records import conversation


class _Label:
    """``pairs``: a window of them; ``rows`` and ``drawn`` are of that window alone."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.labeler = job.component("labeler")
        self.principles = job.principles("comparison")
        self.take(())
        models, components = job.spec.identity["models"], job.spec.identity["components"]
        # Besides the judge: what a labeler asks in other roles, and backends of their own.
        self.others: dict[str, Any] = {}
        if roles := {role: models[role] for role in models if role != "judge"}:
            self.others["roles"] = roles
        if backends := [c for c in components if c.get("role")]:
            self.others["backends"] = backends

    def take(self, pairs: Sequence[dict[str, Any]]) -> None:
        """Turn to the next window."""
        self.pairs = pairs
        self.rows: dict[str, Row] = {}
        self.drawn: dict[str, list[str]] = {}

    def initial(self) -> Iterable[Unit[Comparison]]:
        models = self.job.spec.identity["models"]  # without a judge where the labeler asks none
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
                "model": models.get("judge", ""),
                "seed": self.job.spec.seed,
                **self.others,
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
    if GIVEN in label.evidence:
        raise PluginError(
            f"the labeler gave evidence {GIVEN!r} for {label.id!r}; the key is kept for what the pairs' file says",
            hint="give the evidence another name",
        )
    payload = {"p_a": label.p_a, "evidence": dict(label.evidence), "tokens_in": label.evidence.get("tokens_in", 0)}
    if label.failure is None and (label.p_a is None or not 0 <= label.p_a <= 1):
        raise PluginError(f"the labeler gave p_a = {label.p_a!r} for {label.id!r}; it must lie in [0, 1]")
    return Outcome(payload, label.failure)


def run_label(job: Job, folder: Path) -> dict[str, Any]:
    """Writes ``labels.parquet``: every pair with its label or the reason why there is none."""
    source = job.input("pairs").path
    path = source / "pairs.parquet"
    human = json.loads((source / HUMAN).read_text(encoding="utf-8")) if (source / HUMAN).is_file() else {}
    mixture = json.loads((source / MIXTURE).read_text(encoding="utf-8")) if (source / MIXTURE).is_file() else {}
    # Nobody judged under the principles that were drawn, where people's labels come from a file.
    people = by_people(use["id"] for use in job.spec.identity["components"])
    total = sum(not pair["failure"] for pair in read_table(path, PAIRS))
    stage, tally = _Label(job), Tally()

    def rows() -> Iterator[dict[str, Any]]:
        for window in windows(read_table(path, PAIRS)):
            stage.take([pair for pair in window if not pair["failure"]])
            LocalExecutor().run(stage, job.ledger(), job.progress, total=total, tally=tally)
            for pair in window:
                row = stage.rows.get(pair["id"])
                if row is None:
                    yield {**pair, "p_a": None}
                    continue
                given = {**({"human": human[pair["id"]]} if pair["id"] in human else {}), **mixture.get(pair["id"], {})}
                yield {
                    **pair,
                    "p_a": row.payload["p_a"] if not row.failure else None,
                    "principles": [] if people else stage.drawn[pair["id"]],
                    "evidence": {**row.payload["evidence"], **({GIVEN: given} if given else {})},
                    "failure": failure_record(row.failure),
                }

    write_table(folder / "labels.parquet", LABELS, rows())
    statistics = label_statistics(read_table(folder / "labels.parquet", LABELS))
    return {**tally.as_info(), "labels": statistics, "warnings": label_warnings(statistics)}
