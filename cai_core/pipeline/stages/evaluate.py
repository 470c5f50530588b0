"""``evaluate`` and ``audit``: evaluators over models, every scored unit a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from cai_core.errors import PluginError
from cai_core.pipeline.executor import LocalExecutor, Outcome, Unit
from cai_core.pipeline.job import Job
from cai_core.pipeline.stages.generate import CHUNK, failure_record
from cai_core.pipeline.tables import ANSWERS, EVAL_ROWS
from cai_core.store.canonical import canonical, write_json
from cai_core.store.ledger import Row
from cai_core.store.tables import read_table, write_table
from cai_core.types.evaluator import Answer, EvalInput, EvalRow, Evaluator, EvalUnit
from cai_core.types.prompts import Prompt
from cai_core.types.records import conversation


class _Evaluation:
    def __init__(self, job: Job, spec: dict[str, Any], evaluator: Evaluator, given: EvalInput) -> None:
        self.job = job
        self.evaluator = evaluator
        self.units = list(evaluator.units(given))
        self.rows: list[EvalRow] = []
        identity = {"id": spec["id"], "revision": spec["revision"]}
        covered = [c for c in job.spec.identity["components"] if c["kind"] != "evaluator"]
        options = next(
            c["options"]
            for c in job.spec.identity["components"]
            if c["id"] == spec["id"] and c["kind"] == "evaluator"
        )
        self.identity = {"evaluator": {**identity, "options": options}, "with": covered}
        models = job.spec.identity["models"]
        if roles := {role: models[role] for role in models if role not in given.models}:
            self.identity["roles"] = roles  # e.g. a judge that an evaluator asks about the models' answers

    def initial(self) -> Iterable[Unit[EvalUnit]]:
        for unit in self.units:
            models = self.job.spec.identity["models"]
            inputs = self.job.spec.identity["inputs"]
            identity = {
                **self.identity,
                "unit": unit.id,
                "payload": dict(unit.payload),
                "model": models.get(unit.model, unit.model),
                "reward": inputs.get("reward", ""),
                "constitution": self.job.spec.identity["constitution"],
                "seed": self.job.spec.seed,
            }
            yield Unit(f"{unit.model}/{unit.id}", identity, unit)

    def run(self, units: Iterator[Unit[EvalUnit]]) -> Iterator[tuple[str, Outcome]]:
        by_model: dict[str, list[EvalUnit]] = {}
        for unit in islice(units, CHUNK):
            by_model.setdefault(unit.work.model, []).append(unit.work)
        for some in by_model.values():
            for row in self.evaluator.run(some):
                yield f"{row.model}/{row.id}", Outcome({"values": dict(row.values)}, row.failure)

    def follow(self, unit: Unit[EvalUnit], row: Row) -> Iterable[Unit[EvalUnit]]:
        self.rows.append(EvalRow(unit.work.id, unit.work.model, row.payload.get("values", {}), row.failure))
        return ()


class _Shifted:
    """Progress of one evaluator as part of all."""

    def __init__(self, job: Job, before: int, total: int, note: str) -> None:
        self.job, self.before, self.total, self.note = job, before, total, note

    def update(self, done: int, total: int, note: str = "") -> None:
        self.job.progress.update(self.before + done, max(self.total, self.before + total), note or self.note)


def run_evaluate(job: Job, folder: Path) -> dict[str, Any]:
    """Writes ``rows.parquet`` and ``metrics.json``. Units of one model run together, so that it is loaded once."""
    models = tuple(job.spec.settings["models"])
    # What the reward picked is answers alone: there is no model of its own to ask for probabilities.
    given = EvalInput(tuple(m for m in models if m in job.spec.models), tuple(_answers(job, models)))
    evaluations = [(spec, _Evaluation(job, spec, evaluator, given)) for spec, evaluator in job.all_of("evaluator")]
    total = sum(len(evaluation.units) for _, evaluation in evaluations)
    before, failed = 0, Counter[str]()
    metrics, table = [], []
    for spec, evaluation in evaluations:
        name = spec["id"].rpartition("/")[2]
        progress = _Shifted(job, before, total, name)
        tally = LocalExecutor().run(evaluation, job.ledger(), progress, total=len(evaluation.units))
        before += len(evaluation.units)
        failed.update(tally.failed)
        rows = sorted(evaluation.rows, key=lambda row: (models.index(row.model) if row.model in models else 0, row.id))
        payloads = {(unit.model, unit.id): dict(unit.payload) for unit in evaluation.units}
        for row in rows:
            table.append(
                {
                    "evaluator": name,
                    "model": row.model,
                    "id": row.id,
                    "payload": payloads[row.model, row.id],
                    "values": dict(row.values),
                    "failure": failure_record(row.failure),
                }
            )
        for metric in evaluation.evaluator.summarise(rows):
            metrics.append({"evaluator": name, **asdict(metric), "per_item": dict(metric.per_item)})
    if job.spec.kind == "audit" and not any(metric["id"] == "audit.accuracy" for metric in metrics):
        (name,) = (spec["id"] for spec, _ in evaluations)
        raise PluginError(
            f"{name} cannot audit a judge: it reports no metric 'audit.accuracy'",
            hint="name another evaluator under label.audit, or null",
        )
    write_table(folder / "rows.parquet", EVAL_ROWS, table)
    try:
        canonical(metrics)
    except (TypeError, ValueError) as error:
        raise PluginError(f"an evaluator reported what is not JSON: {error}") from error
    write_json(folder / "metrics.json", metrics)
    return {"ok": len(table) - failed.total(), "failed": dict(sorted(failed.items())), "metrics": len(metrics)}


def _answers(job: Job, models: Sequence[str]) -> Iterator[Answer]:
    for model in models:
        if f"answers:{model}" not in job.spec.inputs:
            continue
        for row in read_table(job.input(f"answers:{model}").path / "answers.parquet", ANSWERS):
            if row["text"] is not None:
                prompt = Prompt(row["prompt_id"], conversation(row["prompt"]), row["kind"], "heldout")
                yield Answer(model, prompt, row["text"])
