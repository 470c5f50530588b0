"""``evaluate`` and ``audit``: evaluators over models, every scored unit a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from cai_core.errors import PluginError
from cai_core.pipeline.executor import LocalExecutor, Outcome, Unit
from cai_core.pipeline.job import Job
from cai_core.pipeline.stages.generate import CHUNK, failure_record
from cai_core.pipeline.tables import ANSWERS, CHAINS, EVAL_ROWS, read_prompts
from cai_core.registry import marked
from cai_core.store.canonical import canonical, derive_seed, write_json
from cai_core.store.ledger import Row
from cai_core.store.tables import read_table, write_table
from cai_core.types.component import SCOPE
from cai_core.types.evaluator import Answer, Chain, EvalInput, EvalRow, Evaluator, EvalUnit, HasCurves
from cai_core.types.prompts import Prompt
from cai_core.types.records import UnitFailure, conversation


class _Evaluation:
    def __init__(
        self, job: Job, spec: dict[str, Any], identity: Mapping[str, Any], evaluator: Evaluator, given: EvalInput
    ) -> None:
        self.job = job
        self.evaluator = evaluator
        self.units = list(evaluator.units(given))
        self.rows: list[EvalRow] = []
        fields = job.registry.find("evaluator", spec["id"]).component.options.model_fields
        scoring = {name: value for name, value in identity["options"].items() if not marked(fields[name], SCOPE)}
        own = {"id": spec["id"], "revision": spec["revision"]}
        covered = [c for c in job.spec.identity["components"] if c["kind"] != "evaluator"]
        self.identity = {"evaluator": {**own, "options": scoring}, "with": covered}
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
    """Writes ``rows.parquet``, ``metrics.json``, ``curves.json`` and ``counts.json``. Units of one model run together,
    so that it is loaded once."""
    # Not the stage's: rows stay when others are added, so what is drawn for them may not depend on those.
    job.seed = derive_seed(job.spec.seed, job.spec.kind)
    models = tuple(job.spec.settings["models"])
    answers, unanswered = _answers(job, models)
    # What the reward picked is answers alone: there is no model of its own to ask for probabilities.
    there = tuple(model for model in models if model in job.spec.models)
    given = EvalInput(there, tuple(answers), tuple(_chains(job)), tuple(_training(job)))
    # The same evaluator may stand there twice, so that options are told apart by place.
    identities = [c for c in job.spec.identity["components"] if c["kind"] == "evaluator"]
    evaluations = [
        (spec, _Evaluation(job, spec, identity, evaluator, given))
        for (spec, evaluator), identity in zip(job.all_of("evaluator"), identities, strict=True)
    ]
    total = sum(len(evaluation.units) for _, evaluation in evaluations)
    before, resumed, failed = 0, 0, Counter[str]()
    metrics, table, curves, counts = [], [], [], []
    for spec, evaluation in evaluations:
        name = spec["id"].rpartition("/")[2]
        progress = _Shifted(job, before, total, name)
        tally = LocalExecutor().run(evaluation, job.ledger(), progress, total=len(evaluation.units))
        before += len(evaluation.units)
        failed.update(tally.failed)
        resumed += tally.reused
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
            maps = {"per_item": dict(metric.per_item), "cluster": dict(metric.cluster)}
            metrics.append({"evaluator": name, **asdict(metric), **maps})
        if isinstance(evaluation.evaluator, HasCurves):
            curves += [{"evaluator": name, **asdict(curve)} for curve in evaluation.evaluator.curves(rows)]
        reads = job.registry.find("evaluator", spec["id"]).component.reads
        counts += _counts(name, rows, unanswered if "answers" in reads else {})
    _check(job, metrics, [spec["id"] for spec, _ in evaluations])
    write_table(folder / "rows.parquet", EVAL_ROWS, table)
    try:
        canonical([metrics, curves])
    except (TypeError, ValueError) as error:
        raise PluginError(f"an evaluator reported what is not JSON: {error}") from error
    for file, value in (("metrics.json", metrics), ("curves.json", curves), ("counts.json", counts)):
        write_json(folder / file, value)
    notes = [f"{n} held-out prompts have no answer of {model} to score" for model, n in unanswered.items()]
    return {
        "ok": len(table) - failed.total(),
        "failed": dict(sorted(failed.items())),
        "metrics": len(metrics),
        "units_resumed": resumed,
        "notes": notes,
    }


def _check(job: Job, metrics: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Raises ``PluginError`` where a metric is there twice, and where an audit says no accuracy."""
    twice = [key for key, n in Counter((metric["id"], metric["model"]) for metric in metrics).items() if n > 1]
    if twice:
        metric, model = twice[0]
        raise PluginError(
            f"two evaluators report the metric {metric!r} of {model}",
            where=", ".join(names),
            hint="where one stands there twice, tell them apart by its option `title`",
        )
    if job.spec.kind == "audit" and not any(metric["id"] == "audit.accuracy" for metric in metrics):
        raise PluginError(
            f"{names[0]} cannot audit a judge: it reports no metric 'audit.accuracy'",
            hint="name another evaluator under label.audit, or null",
        )


def _counts(name: str, rows: Sequence[EvalRow], unanswered: Mapping[str, int]) -> list[dict[str, Any]]:
    """Per model how many units were scored and how many failed, and how many prompts have no answer to score."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = found.setdefault(row.model, {"scored": 0, "failed": Counter()})
        if row.failure:
            entry["failed"][row.failure.kind] += 1
        else:
            entry["scored"] += 1
    for model in unanswered:
        found.setdefault(model, {"scored": 0, "failed": Counter()})
    return [
        {
            "evaluator": name,
            "model": model,
            "scored": entry["scored"],
            "unscored": unanswered.get(model, 0),
            "failed": dict(sorted(entry["failed"].items())),
        }
        for model, entry in found.items()
    ]


def _answers(job: Job, models: Sequence[str]) -> tuple[list[Answer], dict[str, int]]:
    """The answers of all models, and how many each did not give."""
    found, missing = [], Counter[str]()
    for model in models:
        if f"answers:{model}" not in job.spec.inputs:
            continue
        for row in read_table(job.input(f"answers:{model}").path / "answers.parquet", ANSWERS):
            if row["text"] is None:
                missing[model] += 1
                continue
            prompt = Prompt(row["prompt_id"], conversation(row["prompt"]), row["kind"], "heldout")
            found.append(Answer(model, prompt, row["text"]))
    return found, dict(missing)


def _chains(job: Job) -> Iterator[Chain]:
    for source, (kind, _) in job.spec.inputs.items():
        if kind != "revise":
            continue
        for row in read_table(job.input(source).path / "chains.parquet", CHAINS):
            rounds = [step for step in row["rounds"] or () if step["revision"] is not None and not step["failure"]]
            if row["kind"] != "red_team":
                continue
            told = row["failure"] or next((step["failure"] for step in row["rounds"] or () if step["failure"]), None)
            yield Chain(
                source,
                f"{row['prompt_id']}/{row['copy']}",
                Prompt(row["prompt_id"], conversation(row["prompt"]), row["kind"]),
                (*([row["answer"]] if row["answer"] is not None else ()), *(step["revision"] for step in rounds)),
                tuple(step["principle_id"] for step in rounds),
                UnitFailure(told["kind"], told["message"]) if told else None,
            )


def _training(job: Job) -> Iterator[Prompt]:
    if "prompts" in job.spec.inputs:
        path = job.input("prompts").path / "prompts.parquet"
        yield from (prompt for prompt in read_prompts(path) if prompt.split == "train")
