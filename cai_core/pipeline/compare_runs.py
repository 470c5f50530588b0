"""Two runs against each other on the same items, as one JSON value: what ``cai compare`` prints and draws.

A number compares only what was measured in the same way. Runs whose held-out prompts or evaluators differ are refused
unless forced; a metric that asks a preference model or a judge is left out where the two runs did not ask the same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai_core.errors import EnvironmentProblem, UserError
from cai_core.pipeline.compare import compare, conclude
from cai_core.pipeline.results import model_label
from cai_core.pipeline.tables import ANSWERS, EVAL_ROWS, PROMPTS
from cai_core.registry import Registry
from cai_core.store.artifacts import Artifact, Artifacts
from cai_core.store.canonical import digest
from cai_core.store.tables import read_table

SCHEMA_VERSION = 1
SEED = 0  # of resampling: the same two runs give the same numbers


@dataclass(slots=True)
class Side:
    """One run: what its evaluation measured of one model."""

    folder: Path
    record: dict[str, Any]
    model: str
    evaluation: Artifact
    heldout: dict[str, str]  # prompt id -> digest of its turns
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)  # prompt id -> row of answers.parquet
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def evaluators(self) -> dict[str, list[Mapping[str, Any]]]:
        """Bare name -> identities of the component, one for each time that the recipe names it."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for use in self.evaluation.identity["components"]:
            if use["kind"] == "evaluator":
                found.setdefault(use["id"].rpartition("/")[2], []).append(use)
        return found

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Those of the model, by id."""
        path = self.evaluation.path / "metrics.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        return {metric["id"]: metric for metric in found if metric["model"] == self.model}


def read_side(run: Path, store: Path, model: str | None) -> Side:
    """The run folder ``run`` with its evaluation out of ``store``; ``model``: its last one by default.

    Raises ``UserError`` where there is nothing to compare, ``EnvironmentProblem`` where the data is damaged.
    """
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        stages = {stage["id"]: stage for stage in record["stages"]}
    except OSError as error:
        raise UserError("not a run folder: it has no run.json", where=str(run), hint="see runs/") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a run folder: run.json is damaged: {error}", where=str(run)) from error
    entry = next((stage for stage in stages.values() if stage["kind"] == "evaluate"), None)
    if entry is None:
        raise UserError("the run evaluates nothing", where=str(run), hint="its recipe has no `evaluate:`")
    artifacts = Artifacts(store / "artifacts")

    def artifact(stage: Mapping[str, Any]) -> Artifact:
        found = artifacts.find(stage["kind"], stage["digest"])
        if found is None:
            if stage["status"] not in ("ok", "partial"):
                message = f"the stage {stage['id']} has not run to its end ({stage['status']})"
                raise UserError(message, where=str(run), hint="run its recipe again: it goes on from what is there")
            message = f"the data of the stage {stage['id']} is not in the store {store}"
            raise UserError(message, where=str(run), hint="name the store of the run: --store, --store-b")
        if damaged := artifacts.torn(found):
            message = f"{damaged} is not what the stage {stage['id']} wrote: the disk or another program has changed it"
            raise EnvironmentProblem(message, where=str(found.path), hint="run the recipe again: it is made anew")
        return found

    evaluation = artifact(entry)
    models = list(evaluation.identity["settings"]["models"])
    chosen = models[-1] if model is None else model
    if chosen not in models:
        raise UserError(f"the run evaluated no model {chosen!r}", where=str(run), hint=f"models: {', '.join(models)}")
    side = Side(run, record, chosen, evaluation, {})
    for name, stage in stages.items():
        if stage["kind"] == "prompts":
            for row in read_table(artifact(stage).path / "prompts.parquet", PROMPTS):
                if row["split"] == "heldout":
                    side.heldout[row["id"]] = digest([row["kind"], row["messages"]])
        elif name == f"answers[{chosen}]":
            found = artifact(stage)
            side.sampling = dict(found.identity["settings"].get("sampling") or {})
            side.answers = {row["prompt_id"]: row for row in read_table(found.path / "answers.parquet", ANSWERS)}
    return side


def compare_runs(a: Side, b: Side, registry: Registry, *, force: bool = False) -> dict[str, Any]:
    """The comparison, ``docs/reference/comparison.md``. Raises ``UserError`` for runs with different data, unless
    ``force``; then only items that both have, with the same text, count."""
    different = list(_differences(a, b))
    if different and not force:
        shown = "\n".join(f"  - {text}" for text in different)
        raise UserError(
            f"the two runs were not measured on the same data:\n{shown}",
            where=f"{a.folder} and {b.folder}",
            hint="a difference between their numbers may come from that; --force compares the items that both have",
        )
    ours, theirs = a.metrics(), b.metrics()
    left_out, unlike = dict(_left_out(a, b, registry)), _unlike_items(a, b)
    rows, excluded = [], []
    for name, first in ours.items():
        second = theirs.get(name)
        if second is None:
            excluded.append({"metric": name, "label": first["label"], "reason": f"not measured in {b.folder.name}"})
            continue
        if first["evaluator"] in left_out and not force:
            excluded.append({"metric": name, "label": first["label"], "reason": left_out[first["evaluator"]]})
            continue
        before, after = (
            {item: value for item, value in metric["per_item"].items() if (metric["evaluator"], item) not in unlike}
            for metric in (first, second)
        )
        clusters = {**(first.get("cluster") or {}), **(second.get("cluster") or {})}
        bounded = first["unit"] == "rate"
        row = compare(name, first["label"], a.model, b.model, before, after, SEED, clusters, bounded=bounded)
        if row is None:
            excluded.append({"metric": name, "label": first["label"], "reason": "no item was scored in both runs"})
            continue
        rows.append(row | _marginals(first, second, row))
    for name in [name for name in theirs if name not in ours]:
        excluded.append({"metric": name, "label": theirs[name]["label"], "reason": f"not measured in {a.folder.name}"})
    conclude(rows)
    warnings = [f"Forced: {text}" for text in different]
    if force:
        warnings += [f"Forced: {name}: {reason}" for name, reason in left_out.items() if name in a.evaluators]
    warnings += _warnings(a, b)
    changes = list(_changes(a, b, rows, ours, theirs))
    comparison: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "kind": "comparison",
        "a": _about(a),
        "b": _about(b),
        "forced": force and bool(different or left_out),
        "warnings": warnings,
        "settings": list(_settings(a.record, b.record)),
        "rows": rows,
        "left_out": excluded,
        "changes": changes,
    }
    comparison["findings"] = list(_findings(comparison))
    return comparison


def _differences(a: Side, b: Side) -> Iterator[str]:
    """What makes the runs' numbers incomparable."""
    only_a, only_b = set(a.heldout) - set(b.heldout), set(b.heldout) - set(a.heldout)
    changed = [item for item in set(a.heldout) & set(b.heldout) if a.heldout[item] != b.heldout[item]]
    if only_a or only_b or changed:
        yield (
            f"held-out prompts: {len(set(a.heldout) & set(b.heldout)) - len(changed)} are the same, {len(only_a)} only "
            f"in the first, {len(only_b)} only in the second, {len(changed)} have the same id and another text"
        )
    for name in [name for name in a.evaluators if name in b.evaluators]:
        if len(a.evaluators[name]) != len(b.evaluators[name]):
            yield f"evaluator {name}: named {len(a.evaluators[name])} and {len(b.evaluators[name])} times"
        for first, second in zip(a.evaluators[name], b.evaluators[name], strict=False):
            for key in ("id", "revision", "options"):
                if first[key] != second[key]:
                    yield f"evaluator {name}: {key} {_short(first[key], second[key])}"


def _short(first: Any, second: Any) -> str:
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
        return ", ".join(f"{key}: {first.get(key)} and {second.get(key)}" for key in keys)
    return f"{first} and {second}"


def _left_out(a: Side, b: Side, registry: Registry) -> Iterator[tuple[str, str]]:
    """Evaluators that ask something besides the answers which the two runs do not have in common."""
    first, second = a.evaluation.identity, b.evaluation.identity
    for name, uses in a.evaluators.items():
        try:
            component = registry.find("evaluator", uses[0]["id"]).component
            needs, roles = (_with_options(component, uses[0]["options"], part) for part in ("needs", "roles"))
        except UserError:  # its plugin is not installed here: whatever it may have asked must be the same
            needs = tuple({c["kind"] for c in first["components"]} - {"evaluator", "backend"})
            roles = ()
        for kind in needs:
            ours, theirs = (_asked(identity, kind) for identity in (first, second))
            if ours != theirs:
                yield name, f"it asks the {kind.replace('_', ' ')}, and the two runs have different ones"
                break
        else:
            for role in roles:
                if first["models"].get(role) != second["models"].get(role):
                    yield name, f"it asks the model in the role {role}, and the two runs have different ones"
                    break


def _with_options(component: Any, options: Mapping[str, Any], part: str) -> tuple[str, ...]:
    """What it asks for with these options, e.g. a labeler and no reward model; all of ``part`` where they misfit."""
    function = getattr(component, f"{part}_of")
    try:
        return tuple(function(component.options.model_validate(options)) if function else getattr(component, part))
    except ValueError:
        return tuple(getattr(component, part))


def _asked(identity: Mapping[str, Any], kind: str) -> Any:
    uses = [use for use in identity["components"] if use["kind"] == kind]
    return uses, identity["inputs"].get("reward") if kind == "reward_model" else None


def _unlike_items(a: Side, b: Side) -> set[tuple[str, str]]:
    """(evaluator, item) that have one id and two texts: held-out prompts, and items of an evaluator's own file."""
    changed = {item for item in a.heldout if item in b.heldout and a.heldout[item] != b.heldout[item]}
    found = {(name, item) for name in a.evaluators for item in changed}
    given = [_own_items(side) for side in (a, b)]
    return found | {key for key in given[0] if key in given[1] and given[0][key] != given[1][key]}


def _own_items(side: Side) -> dict[tuple[str, str], str]:
    """Digests of items that are no held-out prompts, without the model's own ``answer`` (``EvalUnit``): what
    ``pairwise`` compares it with must be the same, and the answer itself is what the runs differ in."""
    rows = read_table(side.evaluation.path / "rows.parquet", EVAL_ROWS)
    own = (row for row in rows if row["model"] == side.model and row["id"] not in side.heldout)
    texts = {row["text"] for row in side.answers.values()}
    return {
        (row["evaluator"], row["id"]): digest(
            {key: found for key, found in row["payload"].items() if key != "answer" or found not in texts}
        )
        for row in own
    }


def _marginals(first: Mapping[str, Any], second: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("value", "low", "high", "n", "failed", "interval")
    found = {f"{side}_value": {key: metric[key] for key in keys} for side, metric in (("a", first), ("b", second))}
    about = {key: first[key] for key in ("evaluator", "unit", "direction", "note")}
    unpaired = {"unpaired_a": first["n"] - row["n"], "unpaired_b": second["n"] - row["n"]}
    return found | about | unpaired


def _warnings(a: Side, b: Side) -> list[str]:
    found = []
    if a.sampling != b.sampling:
        found.append(f"The answers were sampled in different ways: {_short(a.sampling, b.sampling)}.")
    for side in (a, b):
        failed = {stage: kinds for stage, kinds in _failures(side.record).items() if kinds}
        if failed:
            texts = (
                f"{stage}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()) for stage, kinds in failed.items()
            )
            found.append(f"{side.folder.name} has units without a result. {'; '.join(texts)}.")
        if side.record.get("status") not in ("ok", "partial"):
            found.append(f"{side.folder.name} has the status {side.record.get('status')}.")
    return found


def _failures(record: Mapping[str, Any]) -> dict[str, Mapping[str, int]]:
    wanted = (stage for stage in record["stages"] if stage["kind"] in ("answers", "evaluate"))
    return {stage["id"]: (stage.get("info") or {}).get("failed") or {} for stage in wanted}


def _about(side: Side) -> dict[str, Any]:
    record = side.record
    return {
        "run": side.folder.name,
        "recipe_name": record.get("recipe_name", ""),
        "model": side.model,
        "label": model_label(side.model),
        "constitution": record.get("constitution", {}),
        "seed": record.get("seed"),
        "status": record.get("status", ""),
        "evaluation": side.evaluation.digest,
        "model_digest": side.evaluation.identity["models"].get(side.model),
    }


def _settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Where the two recipes differ."""
    ours, theirs = (dict(_flat(record.get("recipe", {}))) for record in (first, second))
    for key in sorted({**ours, **theirs}):
        if ours.get(key) != theirs.get(key):
            yield {"key": key, "a": ours.get(key), "b": theirs.get(key)}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not path):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{path}[{number}]")
    else:
        yield path, value


def _changes(
    a: Side,
    b: Side,
    rows: Sequence[Mapping[str, Any]],
    ours: Mapping[str, dict[str, Any]],
    theirs: Mapping[str, dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Every item whose value differs, the largest differences of each metric first, with its texts."""
    payloads: dict[tuple[str, str], Any] = {}
    for scored in read_table(b.evaluation.path / "rows.parquet", EVAL_ROWS):
        if scored["model"] == b.model:
            payloads[scored["evaluator"], scored["id"]] = scored["payload"]
    unlike = _unlike_items(a, b)
    for row in rows:
        name = row["metric"]
        before, after = ours[name]["per_item"], theirs[name]["per_item"]
        items = [i for i in before if i in after and before[i] != after[i] and (row["evaluator"], i) not in unlike]
        items.sort(key=lambda i: (-abs(after[i] - before[i]), i))
        for item in items:
            better = {"higher": after[item] > before[item], "lower": after[item] < before[item]}.get(row["direction"])
            yield {
                "metric": name,
                "id": item,
                "a": before[item],
                "b": after[item],
                "verdict": "changed" if better is None else "better" if better else "worse",
                "prompt": a.answers[item]["prompt"] if item in a.answers else None,
                "item": None if item in a.answers else payloads.get((row["evaluator"], item)),
                "answer_a": a.answers.get(item, {}).get("text"),
                "answer_b": b.answers.get(item, {}).get("text"),
            }


def _findings(comparison: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    rows = comparison["rows"]
    certain = [row for row in rows if row["conclusive"]]
    for row in certain:
        toward = {"none": "", "higher": "better", "lower": "better"}[row["direction"]]
        if toward and (row["difference"] > 0) != (row["direction"] == "higher"):
            toward = "worse"
        yield {
            "level": "info",
            "title": f"{row['label']}: " + (f"{comparison['b']['run']} is {toward}" if toward else "they differ"),
            "text": f"p = {row['p_holm']:.2g} after Holm's correction over {len(rows)} metrics, n = {row['n']}.",
        }
    if rows and not certain:
        yield {
            "level": "warning",
            "title": "No difference between the two runs can be concluded",
            "text": f"None of {len(rows)} paired tests is significant after Holm's correction at 5 %. That is no proof "
            "that they are equal: the table says which difference each test would have found in 80 of 100 runs.",
        }
    if not rows:
        yield {"level": "warning", "title": "Nothing can be compared", "text": "No metric is common to both runs."}
