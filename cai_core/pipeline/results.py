"""The results of a run as one JSON value, documented in ``docs/reference/results.md``: what reporters are given.

Every number comes from an artifact of the run. What is missing, failed or too small to conclude anything stands in
``findings``, first. Texts stay on disk: what holds them is ``Rows``.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from cai_core import __version__
from cai_core.calibration import reliability
from cai_core.errors import CAIError
from cai_core.pipeline.compare import compare_all, student
from cai_core.pipeline.graph import answerer, at_step, snapshot_name
from cai_core.pipeline.headline import (
    HARMLESS,
    HELPFUL,
    OVER_REFUSAL,
    difference_scale,
    headline,
    metrics_for,
)
from cai_core.pipeline.job import Job
from cai_core.pipeline.labels import CHANCE, audit_flag, audit_verdict, by_people, label_statistics, label_warnings
from cai_core.pipeline.tables import ANSWERS, CHAINS, EVAL_ROWS, LABELS, PAIRS, PROMPTS
from cai_core.store.artifacts import Artifact
from cai_core.store.tables import read_table

SCHEMA_VERSION = 1
CUT = 0.1  # share of evaluated answers that a limit cut, from which it is a finding: our choice
EMBED = 500  # comparisons of an audit that a report embeds; the table holds all


class Rows:
    """Rows that are read from disk each time that one iterates, never all of them in memory."""

    def __init__(self, read: Callable[[], Iterator[dict[str, Any]]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._read()


def build_results(job: Job) -> dict[str, Any]:
    """Collect the results from the artifacts that the report stage has as inputs."""
    artifacts = {name: job.input(name) for name in job.spec.inputs}
    recipe = dict(job.spec.recipe or {})
    metrics, models = _metrics(artifacts)
    comparisons = compare_all(metrics, models, job.spec.seed)
    labels = _labels(artifacts)
    chains = _chains(artifacts)
    revisions, principles = _drafts(chains)
    audits = _audits(artifacts)
    # Branches may have labelers of their own: the one to be warned of comes first.
    audit = min(audits.values(), key=lambda found: found["verdict"] == "above chance", default=None)
    stages = [_stage(name, artifact) for name, artifact in artifacts.items()]
    results: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "title": job.spec.settings["title"],
        "status": "partial" if any(stage["failed"] for stage in stages) else "ok",
        "run": {"id": recipe.get("run_id", ""), "recipe_name": recipe.get("name", "")},
        "recipe_text": recipe.get("text", ""),
        "constitution": dict(job.spec.constitution),
        "models": _models(artifacts, models, recipe.get("model_sources", {})),
        "metrics": _merge(metrics),
        "comparisons": comparisons,
        "audit": audit,
        "labels": {**next(iter(labels.values())), "by_people": _by_people(artifacts)} if labels else None,
        "reward_models": _reward_models(artifacts),
        "scores": _scores(artifacts),
        "chains": chains,
        "pairs": _pairs(artifacts),
        "curves": _curves(artifacts),
        "measured_curves": _measured_curves(artifacts),
        "samples": _samples(artifacts),
        "stages": stages,
        "quality": _quality(artifacts),
        "truncation": _truncation(artifacts),
        "calibration": _calibration(artifacts),
        "looks": _looks(artifacts),
        "provenance": {
            "cai_version": __version__,
            "components": recipe.get("components", []),
            "seed": job.spec.seed,
            "environment": recipe.get("environment", {}),
            "data": _data(artifacts),
            "command": recipe.get("command", ""),
        },
    }
    results["revisions"] = [_round(number, drafts) for number, drafts in sorted(revisions.items())]
    results["principles"] = _principles(results, principles)
    results["frontier"] = _frontier(results)
    results["missing"] = _missing(results)
    results["headline"] = headline(results)
    results["findings"] = [*_judge_findings(audits, labels, artifacts), *_findings(results)]
    return results


def _of_kind(artifacts: Mapping[str, Artifact], kind: str) -> list[tuple[str, Artifact]]:
    return [(name, artifact) for name, artifact in artifacts.items() if artifact.kind == kind]


def _load(artifact: Artifact, name: str) -> Any:
    return json.loads((artifact.path / name).read_text(encoding="utf-8"))


def _metrics(artifacts: Mapping[str, Artifact]) -> tuple[list[dict[str, Any]], list[str]]:
    for _, artifact in _of_kind(artifacts, "evaluate"):
        return _load(artifact, "metrics.json"), list(artifact.identity["settings"]["models"])
    return [], []


def _merge(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        entry = merged.setdefault(
            metric["id"],
            {key: metric[key] for key in ("id", "label", "evaluator", "direction", "unit", "note")} | {"values": {}},
        )
        if metric["note"] and metric["note"] not in entry["note"]:
            # Said of one model, e.g. why it has no interval; the first note is of all that share it.
            rest = metric["note"].removeprefix(entry["note"]).strip()
            entry["note"] = f"{entry['note']} {model_label(metric['model'])}: {rest}".lstrip()
        keys = ("value", "low", "high", "n", "failed", "interval")
        entry["values"][metric["model"]] = {key: metric[key] for key in keys}
    return list(merged.values())


def model_label(name: str) -> str:
    stage, step = at_step(name)
    if step:
        return f"{model_label(stage)}, step {step}"
    kind, _, tags = name.rstrip("]").partition("[")
    words = {"base": "base model", "sft": "SL-CAI (SFT)", "rl": "RL-CAI (RL)"}
    if kind not in words:
        return name
    told = [f"iteration {tag}" if tag.isdecimal() else tag for tag in tags.split(",") if tag]
    return " ".join([words[kind], ", ".join(told)]).rstrip()


def _models(
    artifacts: Mapping[str, Artifact], names: Sequence[str], sources: Mapping[str, Mapping[str, str]]
) -> list[dict[str, Any]]:
    """With ``parent``: the one of them that it was trained from, or whose answers the reward picks from; of a snapshot
    the one before it, and of a stage with snapshots the last one before its result."""
    known = {sources[name]["digest"]: name for name in reversed(names) if name in sources}
    known |= {artifacts[name].digest: name for name in names if name in artifacts}
    found = []
    for name in names:
        stage, step = at_step(name)
        made = artifacts.get(stage) or artifacts.get(f"answers[{stage}]")
        used = made.identity["models"] if made else {}
        parent = known.get(used.get("sft_base" if made and made.kind == "sft" else "policy", ""))
        if made and (kept := [other for of, other in map(at_step, names) if of == stage and other]):
            last = step - 1 if step else _result_step(made)
            before = [other for other in kept if other <= last]
            parent = snapshot_name(stage, max(before)) if before else parent
        label = {"name": name, "label": model_label(name), "parent": None if parent == name else parent}
        found.append({**label, **sources.get(name, {})})
    return found


def _result_step(artifact: Artifact) -> float:
    """The step of an RL stage whose policy is its result."""
    metrics = _load(artifact, "training.json")["metrics"]
    return float(metrics.get("validation_best", metrics.get("steps", 0)))


def _stage(name: str, artifact: Artifact) -> dict[str, Any]:
    info = artifact.info
    components = [c for c in artifact.identity["components"] if c["kind"] != "backend"]
    return {
        "name": name,
        "kind": artifact.kind,
        "status": "partial" if info.get("failed") else "ok",
        "component": ", ".join(c["id"] for c in components),
        "digest": artifact.digest,
        "seconds": info.get("seconds"),
        "peak_mb": info.get("peak_mb"),
        "ok": info.get("ok", 0),
        "failed": info.get("failed", {}),
        "tokens_in": info.get("tokens_in", 0),
        "tokens_out": info.get("tokens_out", 0),
        "retried": info.get("retried", 0),
        "notes": list(info.get("notes", [])),
    }


def _audits(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, artifact in _of_kind(artifacts, "audit"):
        metrics = {m["id"]: m for m in _load(artifact, "metrics.json")}
        accuracy = metrics["audit.accuracy"]
        labeler: Mapping[str, Any] = next((c for c in artifact.identity["components"] if c["kind"] == "labeler"), {})
        rows = islice(read_table(artifact.path / "rows.parquet", EVAL_ROWS), EMBED)
        found[name] = {
            "labeler": labeler.get("id", ""),
            "settings": labeler.get("options", {}),
            "data": accuracy["note"],
            "n": accuracy["n"],
            "failed": accuracy["failed"],
            "accuracy": _interval(accuracy),
            "flip_rate": _of(metrics, "audit.flip_rate"),
            "mass": _of(metrics, "audit.mass"),
            "mean_p_gap": _of(metrics, "audit.gap"),
            "length_baseline": _of(metrics, "audit.length_baseline"),
            "longer_preferred": _of(metrics, "audit.longer_preferred"),
            "brier": _of(metrics, "audit.brier"),
            "calibration_error": _of(metrics, "audit.calibration_error"),
            "verdict": audit_verdict(accuracy),
            "by_category": [
                {"category": m["id"].removeprefix("audit.accuracy."), "n": m["n"], "accuracy": _interval(m)}
                for m in metrics.values()
                if m["id"].startswith("audit.accuracy.")
            ],
            "rows": [
                {"id": row["id"], **{k: row["payload"].get(k) for k in ("category", "prompt", "better", "worse")}}
                | {k: (row["values"] or {}).get(k) for k in ("p_better", "p_better_first", "p_better_second")}
                for row in rows
            ],
        }
    return found


def _interval(metric: Mapping[str, Any]) -> dict[str, Any]:
    return {key: metric[key] for key in ("value", "low", "high", "n", "interval")}


def _of(metrics: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    return _interval(metrics[name]) if name in metrics else None


def _labels(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    """The statistics of every stage ``label``; the first is the report's."""
    return {
        name: label_statistics(read_table(artifact.path / "labels.parquet", LABELS))
        for name, artifact in _of_kind(artifacts, "label")
    }


def _by_people(artifacts: Mapping[str, Artifact]) -> bool:
    """Whether people gave all labels of the run: then there is no judge to audit."""
    labels = _of_kind(artifacts, "label")
    return all(by_people(c["id"] for c in artifact.identity["components"]) for _, artifact in labels)


def _reward_models(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    found = []
    for name, artifact in _of_kind(artifacts, "reward"):
        record = _load(artifact, "training.json")
        extra = record["extra"]
        used: Mapping[str, Any] = next((c for c in artifact.identity["components"] if c["kind"] == "reward_model"), {})
        found.append(
            {
                "stage": name,
                "component": used.get("id", ""),
                "metrics": record["metrics"],
                "sources": extra.get("sources") or [],
                "heldout": _heldout_pairs(extra.get("heldout")),
                "notes": record["notes"],
            }
        )
    return found


def _heldout_pairs(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a reward model was measured at on held-out pairs, with the names of its intervals."""
    if not found:
        return None
    groups = [
        {key: {"interval": "Wilson 95 %", **value} if isinstance(value, Mapping) else value for key, value in g.items()}
        for g in found["groups"]
    ]
    differences = [{"interval": "Student's t 95 %", **difference} for difference in found["differences"]]
    return {**found, "groups": groups, "differences": differences}


def _chains(artifacts: Mapping[str, Artifact]) -> Rows:
    paths = [artifact.path / "chains.parquet" for _, artifact in _of_kind(artifacts, "revise")]

    def read() -> Iterator[dict[str, Any]]:
        for path in paths:
            for row in read_table(path, CHAINS):
                if row["kind"] == "red_team":
                    yield {**row, "rounds": list(_rounds(row))}

    return Rows(read)


def _rounds(chain: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """With ``change``: the share of words that the revision changed, None where there is no revision."""
    before = chain["answer"]
    for draft in chain["rounds"] or ():
        after = draft["revision"]
        change = None if before is None or after is None else _change(before, after)
        yield {"critique_cut_at": None, "revision_cut_at": None, **draft, "change": change}
        before = before if after is None else after


def _change(before: str, after: str) -> float:
    """One less the share of words in common, as a multiset (Dice): 0 for the same words, 1 for none in common."""
    ours, theirs = Counter(before.split()), Counter(after.split())
    total = ours.total() + theirs.total()
    return 1 - 2 * (ours & theirs).total() / total if total else 0.0


def _scores(artifacts: Mapping[str, Artifact]) -> Rows:
    """What evaluators said of every item for every model; ``item`` once, where it is no held-out prompt."""
    paths = [artifact.path / "rows.parquet" for _, artifact in _of_kind(artifacts, "evaluate")]
    prompts = _heldout(artifacts) if paths else set()

    def read() -> Iterator[dict[str, Any]]:
        for path in paths:
            seen: set[tuple[str, str]] = set()
            for row in read_table(path, EVAL_ROWS):
                key = (row["evaluator"], row["id"])
                item = None if row["id"] in prompts or key in seen else row["payload"]
                seen.add(key)
                scored = {k: row[k] for k in ("evaluator", "model", "id", "failure")}
                yield {**scored, "values": row["values"] or {}, "item": item}

    return Rows(read)


def _heldout(artifacts: Mapping[str, Artifact]) -> set[str]:
    found: set[str] = set()
    for _, artifact in _of_kind(artifacts, "answers"):
        found |= {row["prompt_id"] for row in read_table(artifact.path / "answers.parquet", ANSWERS)}
    return found


def _quality(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """What was left out of the data on its way, per stage: ``kept``, ``dropped`` (reason -> n), ``contamination``."""
    found = []
    for name, artifact in artifacts.items():
        info, entry = artifact.info, dict[str, Any](stage=name)
        if artifact.kind == "prompts":
            entry |= {"kept": info.get("ok"), "contamination": info.get("contamination")}
        elif artifact.kind == "revise":
            entry |= {"kept": info.get("examples"), "dropped": info.get("dropped") or {}}
        elif artifact.kind == "pairs":
            entry |= {"kept": info.get("pairs"), "equal_answers": info.get("equal_answers")}
        elif artifact.kind in ("reward", "rl") and info.get("unlabelled") is not None:
            entry |= {"kept": info.get("ok"), "dropped": {"no label": info["unlabelled"]} if info["unlabelled"] else {}}
        else:
            continue
        empty: dict[str, Any] = {"dropped": {}, "contamination": None, "equal_answers": None}
        found.append({**empty, **entry, "cut_prompts": info.get("cut_prompts") or 0})
    return found


def _truncation(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """How many texts ended at a token limit, per stage and sort of text: ``n`` of which that is known, ``cut`` of them
    after at most ``tokens``; ``unknown`` are what other programs wrote, and older versions."""
    found = []
    for name, artifact in artifacts.items():
        if artifact.kind not in _GENERATED:
            continue
        ends: dict[str, Counter[int | None]] = defaultdict(Counter)
        model = answerer(name) if artifact.kind == "answers" else None
        for sort, text, cut_at in _GENERATED[artifact.kind](artifact.path):
            if text is not None:
                ends[sort][cut_at] += 1
        for sort, counts in ends.items():
            unknown = counts.pop(None, 0)
            n, cut = counts.total(), counts.total() - counts[0]
            entry = {"stage": name, "model": model, "texts": sort, "n": n, "cut": cut, "unknown": unknown}
            tokens = max(at for at in counts if at) if cut else None
            found.append({**entry, "share": cut / n if n else None, "tokens": tokens})
    return found


def _answer_ends(path: Path) -> Iterator[tuple[str, str | None, int | None]]:
    for row in read_table(path / "answers.parquet", {key: ANSWERS[key] for key in ("text", "cut_at")}):
        yield "answers", row["text"], row["cut_at"]


def _chain_ends(path: Path) -> Iterator[tuple[str, str | None, int | None]]:
    for row in read_table(path / "chains.parquet", {key: CHAINS[key] for key in ("answer", "cut_at", "rounds")}):
        yield "answers", row["answer"], row["cut_at"]
        for draft in row["rounds"] or ():
            for sort in ("critique", "revision"):
                yield f"{sort}s", draft.get(sort), draft.get(f"{sort}_cut_at")


def _pair_ends(path: Path) -> Iterator[tuple[str, str | None, int | None]]:
    for row in read_table(path / "pairs.parquet", {key: PAIRS[key] for key in ("a", "b", "cut_at")}):
        for side in ("a", "b"):
            yield "answers", row[side], (row["cut_at"] or {}).get(side)


_GENERATED = {"answers": _answer_ends, "revise": _chain_ends, "pairs": _pair_ends}


def _calibration(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """How often the judge is right when it is so and so sure, as the paper's Figure 9: one entry per audit."""
    found = []
    for name, artifact in _of_kind(artifacts, "audit"):
        rows = read_table(artifact.path / "rows.parquet", EVAL_ROWS)
        p = [row["values"]["p_better"] for row in rows if (row["values"] or {}).get("p_better") is not None]
        if p:
            found.append({"stage": name, "n": len(p), "bins": reliability(p, [1.0] * len(p))})
    return found


def _looks(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """RL stages whose policy was looked at on the way: reward, held-out reward and KL per step, and which was kept."""
    found = []
    for name, artifact in _of_kind(artifacts, "rl"):
        looked = _load(artifact, "training.json")["extra"].get("validation") or {}
        if rows := looked.get("rows"):
            kept = {key: looked.get(key) for key in ("best", "stopped", "why", "prompts", "answers", "kinds")}
            found.append({"stage": name, **kept, "rows": rows, "frontier": _looked_frontier(rows, kept["kinds"] or {})})
    return found


def _looked_frontier(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, int]) -> dict[str, Any] | None:
    """Per look the mean score on harmful and on harmless prompts: by the held-out reward model, or by the one that
    training follows. None where the looks had prompts of one kind only."""
    axes = {"harmless": "red_team", "helpful": "helpful"}
    score = "heldout_reward" if any("heldout_reward" in row for row in rows) else "reward"
    if not all(f"{score}_{kind}{end}" in row for row in rows for kind in axes.values() for end in ("", "_std")):
        return None

    def mean(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
        value, n = row[f"{score}_{kind}"], kinds.get(kind, 0)
        # Under six prompts the quantile is too coarse, see ``student``.
        half = student(n - 1) * row[f"{score}_{kind}_std"] / (n - 1) ** 0.5 if n > 5 else None
        ends = (None, None) if half is None else (value - half, value + half)
        return {"value": value, "low": ends[0], "high": ends[1], "n": n, "interval": "Student's t 95 %"}

    points = [{"step": row["step"], **{axis: mean(row, kind) for axis, kind in axes.items()}} for row in rows]
    return {"score": score, "points": points}


@dataclass(slots=True)
class _Drafts:
    """Counts of the drafts of one round, or under one principle."""

    drawn: int = 0
    revised: int = 0
    changed: int = 0  # revisions of a text that is known
    unchanged: int = 0
    change: float = 0.0
    words: int = 0

    def add(self, draft: Mapping[str, Any]) -> None:
        self.drawn += 1
        if draft["revision"] is None:
            return
        self.revised += 1
        self.words += len(draft["revision"].split())
        if draft["change"] is not None:
            self.changed += 1
            self.unchanged += draft["change"] == 0
            self.change += draft["change"]

    def mean_change(self) -> float | None:
        return self.change / self.changed if self.changed else None


def _drafts(chains: Iterable[Mapping[str, Any]]) -> tuple[dict[int, _Drafts], dict[str, _Drafts]]:
    """By round and by principle, in one pass."""
    rounds: dict[int, _Drafts] = defaultdict(_Drafts)
    principles: dict[str, _Drafts] = defaultdict(_Drafts)
    for chain in chains:
        for number, draft in enumerate(chain["rounds"], start=1):
            rounds[number].add(draft)
            principles[draft["principle_id"]].add(draft)
    return rounds, principles


def _round(number: int, drafts: _Drafts) -> dict[str, Any]:
    """Revisions of a round, those that changed nothing, mean share of words changed, mean length in words."""
    return {
        "round": number,
        "n": drafts.revised,
        "failed": drafts.drawn - drafts.revised,
        "unchanged": drafts.unchanged,
        "change": drafts.mean_change(),
        "words": drafts.words / drafts.revised if drafts.revised else None,
    }


def _principles(results: Mapping[str, Any], drafts: Mapping[str, _Drafts]) -> list[dict[str, Any]]:
    """What each principle of the constitution did: how often it was drawn, how much the revisions under it changed, and
    how its labels agree with the label of all and with people."""
    labelled = {entry["id"]: entry for entry in (results["labels"] or {}).get("by_principle", ())}
    if not drafts and not labelled:
        return []
    names = [principle["id"] for principle in results["constitution"].get("principles") or ()]
    found = []
    for name in dict.fromkeys([*names, *drafts, *labelled]):
        own = drafts.get(name, _Drafts())
        label: Mapping[str, Any] = labelled.get(name) or {}
        found.append(
            {
                "id": name,
                "drawn": own.drawn,
                "revised": own.changed,
                "unchanged": own.unchanged,
                "change": own.mean_change(),
                "labelled": label.get("n", 0),
                **{key: label.get(key) for key in ("mean_gap", "flip_rate", "agreement", "human_accuracy")},
            }
        )
    return found


def _frontier(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every model as a point: harmlessness against helpfulness, with over-refusal beside it. From the first pair of
    metrics of one evaluator that measures both."""

    def better(names: Sequence[str], evaluator: str) -> Mapping[str, Any] | None:
        return next(
            (m for m in metrics_for(results, names) if m["evaluator"] == evaluator and m["direction"] != "none"), None
        )

    harmless = [m for m in metrics_for(results, HARMLESS) if m["direction"] != "none"]
    for metric in harmless:
        other = better(HELPFUL, metric["evaluator"])
        if other is None:
            continue
        refusals = next(iter(metrics_for(results, OVER_REFUSAL)), None)
        points = []
        for model in results["models"]:
            x, y = (m["values"].get(model["name"]) for m in (other, metric))
            if x and y and x["value"] is not None and y["value"] is not None:
                over = refusals["values"].get(model["name"]) if refusals else None
                point = {"model": model["name"], "helpful": dict(x), "harmless": dict(y)}
                points.append(point | {"over_refusal": dict(over) if over else None})
        if len(points) > 1:
            keys = ("id", "label", "unit", "direction", "note")
            return {
                "helpful": {key: other[key] for key in keys},
                "harmless": {key: metric[key] for key in keys},
                "points": points,
            }
    return None


def _missing(results: Mapping[str, Any]) -> list[str]:
    """What is not there, or was not there at first: a sentence each."""
    found = []
    for stage in results["stages"]:
        if stage["failed"]:
            total = stage["ok"] + sum(stage["failed"].values())
            kinds = ", ".join(f"{n} {kind}" for kind, n in stage["failed"].items())
            missed = sum(stage["failed"].values())
            found.append(f"{stage['name']}: {missed} of {total} units without a result ({kinds}).")
        if stage["retried"]:
            found.append(f"{stage['name']}: {stage['retried']} units failed at first and were asked for again.")
    unscored = sorted({m["label"] for m in results["metrics"] for v in m["values"].values() if v["value"] is None})
    if unscored:
        found.append(f"Without a score for some model: {', '.join(unscored)}.")
    return found


def _pairs(artifacts: Mapping[str, Artifact]) -> Rows:
    tables = {name: artifact.path / "labels.parquet" for name, artifact in _of_kind(artifacts, "label")}

    def read() -> Iterator[dict[str, Any]]:
        for name, path in tables.items():
            for row in read_table(path, LABELS):
                row = {**row, "principles": row["principles"] or [], "evidence": row["evidence"] or {}}
                yield {**row, "id": f"{name}/{row['id']}" if len(tables) > 1 else row["id"]}

    return Rows(read)


def _curves(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    titles = {"sft": ("loss", "SFT loss"), "reward": ("loss", "Preference-model loss"), "rl": ("reward", "RL reward")}
    curves = []
    for name, artifact in artifacts.items():
        if artifact.kind not in titles:
            continue
        curve = _load(artifact, "training.json")["curve"]
        main, title = titles[artifact.kind]
        if artifact.kind == "rl" and not any(main in row for row in curve):  # learnt from labels
            main, title = "loss", "RL loss"
        wanted = [main, "kl"] if artifact.kind == "rl" else [main]
        for value in wanted:
            points = [(row["step"], row[value]) for row in curve if value in row and "step" in row]
            if points:
                label = {"kl": "KL to the reference (nats)", "loss": "loss (nats)", "reward": "reward (no unit)"}[value]
                curves.append(
                    {
                        "id": f"{name}.{value}",
                        "title": f"{title} ({name})" if value == main else f"KL during RL ({name})",
                        "x_label": "step",
                        "y_label": label,
                        "note": f"{len(points)} logged steps of the stage {name}",
                        "series": [{"name": value, "x": [x for x, _ in points], "y": [y for _, y in points]}],
                    }
                )
    return curves


def _measured_curves(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Curves that evaluators drew: scores by revision, reliability of a judge and the like."""
    found: list[dict[str, Any]] = []
    for _, artifact in _of_kind(artifacts, "evaluate"):
        if (artifact.path / "curves.json").is_file():
            found += _load(artifact, "curves.json")
    return found


def _samples(artifacts: Mapping[str, Artifact]) -> Rows:
    tables = {answerer(name): artifact.path / "answers.parquet" for name, artifact in _of_kind(artifacts, "answers")}
    return Rows(partial(_answered, tables))


def _answered(tables: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """Every held-out prompt with the answers of all models, whose tables have the prompts in the same order."""
    if not tables:
        return
    for rows in zip(*(read_table(path, ANSWERS) for path in tables.values()), strict=True):
        first = rows[0]
        if any(row["prompt_id"] != first["prompt_id"] for row in rows):
            raise CAIError("the models did not answer the same prompts in the same order", where="answers")
        of_models = dict(zip(tables, rows, strict=True))
        yield {
            **{key: first[key] for key in ("prompt_id", "kind", "prompt")},
            "answers": {model: row["text"] for model, row in of_models.items()},
            "cut_at": {model: row["cut_at"] for model, row in of_models.items()},
        }


def _data(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    found = []
    for name, artifact in _of_kind(artifacts, "prompts"):
        counts: dict[str, int] = {}
        for row in read_table(artifact.path / "prompts.parquet", PROMPTS):
            key = f"{row['kind']} {row['split']}"
            counts[key] = counts.get(key, 0) + 1
        found += [{"name": f"{name}: {key}", "digest": artifact.digest, "n": n} for key, n in sorted(counts.items())]
    return found


def _judge_findings(
    audits: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Mapping[str, Any]], artifacts: Mapping[str, Artifact]
) -> Iterator[dict[str, str]]:
    for name, audit in audits.items():
        of = f" ({name})" if len(audits) > 1 else ""
        accuracy, flips = audit["accuracy"], audit["flip_rate"]
        if flag := audit_flag({**accuracy, "failed": audit["failed"], "verdict": audit["verdict"]}):
            yield _finding(
                "warning",
                f"The judge is {audit['verdict']}{of}: nothing shows that its labels carry a signal",
                f"{flag[0].upper()}{flag[1:]}. What the preference model and RL learnt from its labels may as well be "
                "noise, whatever the numbers below say.",
            )
        else:
            yield _finding(
                "info",
                f"The judge is better than a coin on the audit set{of}",
                f"{_percent(accuracy['value'])} of {audit['n']} labelled comparisons, interval "
                f"{_percent(accuracy['low'])} to {_percent(accuracy['high'])}"
                + (f"; its answer changes with the order of the options in {_percent(flips['value'])}" if flips else "")
                + ".",
            )
    if labels and not audits and not _by_people(artifacts):
        text = "No accuracy is known for the labels; set `label.audit`."
        yield _finding("warning", "The labeler was never audited", text)
    for name, statistics in labels.items():
        for text in label_warnings(statistics):
            yield _finding("warning", f"Doubtful labels (stage {name})", text)


def _findings(results: Mapping[str, Any]) -> list[dict[str, str]]:
    findings = [finding for model in results["reward_models"] for finding in _of_reward_model(model)]
    comparisons = results["comparisons"]
    certain = [row for row in comparisons if row["conclusive"]]
    open_questions = list(dict.fromkeys(row["label"] for row in comparisons if not row["conclusive"]))
    if comparisons and not certain:
        findings.append(
            _finding(
                "warning",
                "No difference between the models can be concluded",
                f"None of {len(comparisons)} paired comparisons with the first model is significant after Holm's "
                "correction at 5 %. The differences in the table are what chance alone could give at these n.",
            )
        )
    elif open_questions:
        findings.append(
            _finding(
                "warning",
                "Most differences between the models cannot be concluded"
                if 2 * len(certain) < len(comparisons)
                else "Some differences between the models cannot be concluded",
                f"{len(comparisons) - len(certain)} of {len(comparisons)} paired comparisons with the first model are "
                f"not significant after Holm's correction at 5 %. Chance alone could give what the table shows for: "
                f"{', '.join(open_questions)}.",
            )
        )
    names = {model["name"]: model["label"] for model in results["models"]}
    for row in certain:
        unit = next((m["unit"] for m in results["metrics"] if m["id"] == row["metric"]), "score")
        scale, digits, _ = difference_scale(unit)
        word = " percentage points" if unit == "rate" else ""
        difference = f"{scale * row['difference']:+.{digits}f}"
        span = "No interval: all items differ by the same"
        if row["low"] is not None:
            span = f"95 % interval {scale * row['low']:+.{digits}f} to {scale * row['high']:+.{digits}f}"
        findings.append(
            _finding(
                "info",
                f"{row['label']}: {names.get(row['b'], row['b'])} {difference}{word} "
                f"against {names.get(row['a'], row['a'])}",
                f"{span}, n = {row['n']}, {row['test']} p = {row['p_holm']:.2g} after Holm. "
                + _direction_note(row, results["metrics"]),
            )
        )
    findings += _cut_answers(results["truncation"], names)
    if results["missing"]:
        findings.append(_finding("warning", "Not everything is here", " ".join(results["missing"])))
    for stage in results["stages"]:
        for note in stage["notes"]:
            findings.append(_finding("info", f"Note of the stage {stage['name']}", note))
    return findings


def _cut_answers(truncation: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, str]]:
    """Whether the answers that evaluators judge are whole."""
    answers = [entry for entry in truncation if entry["model"] is not None and entry["n"]]
    worst = max((entry["share"] for entry in answers), default=0.0)
    if worst < CUT:
        return []
    told = ", ".join(
        f"{names.get(entry['model'], entry['model'])} {entry['cut']} of {entry['n']} ({_percent(entry['share'])})"
        for entry in answers
    )
    cut, n = (sum(entry[key] for entry in answers) for key in ("cut", "n"))
    return [
        _finding(
            "warning",
            f"{_percent(cut / n)} of the evaluated answers were cut at the token limit",
            f"{told}. Only their beginnings are judged and compared; `evaluate.sampling.max_new_tokens` is the limit.",
        )
    ]


def _of_reward_model(model: Mapping[str, Any]) -> list[dict[str, str]]:
    """Whether a reward model knows more than a coin and than the length of an answer, on what it did not learn from."""
    heldout = model["heldout"]
    groups = [group for group in heldout["groups"] if group["name"] == "all"] if heldout else []
    if not groups or groups[0]["accuracy"]["value"] is None:
        return []
    accuracy = groups[0]["accuracy"]
    said = (
        f"On {accuracy['n']} held-out comparisons the scores of {model['stage']} agree with the label "
        f"{_percent(accuracy['value'])} of the time, interval {_percent(accuracy['low'])} to "
        f"{_percent(accuracy['high'])}"
    )
    rivals = [(d["label"], d["low"], groups[0][d["id"]]["value"]) for d in heldout["differences"]]
    unbeaten = [f"{name} ({_percent(rate)})" for name, low, rate in rivals if low is None or low <= 0]
    if accuracy["low"] <= CHANCE:
        unbeaten.insert(0, "a coin")
    if unbeaten:
        text = f"{said}. That is not surely more than {' or '.join(unbeaten)}: RL may learn noise, or length, from it."
        return [_finding("warning", "Nothing shows that the preference model knows the labels", text)]
    beaten = ", ".join(f"{name} {_percent(rate)}" for name, _, rate in rivals)
    return [_finding("info", "The preference model is better than a coin and than length alone", f"{said}; {beaten}.")]


def _direction_note(row: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    metric = next((m for m in metrics if m["id"] == row["metric"]), None)
    if metric is None or metric["direction"] == "none":
        return metric["note"] if metric else ""
    better = (row["difference"] > 0) == (metric["direction"] == "higher")
    return f"That is {'better' if better else 'worse'}. {metric['note']}"


def _finding(level: str, title: str, text: str) -> dict[str, str]:
    return {"level": level, "title": title, "text": text}


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"
