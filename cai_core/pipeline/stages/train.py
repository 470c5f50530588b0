"""``sft``, ``reward`` and ``rl``: training, by components that write a complete model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_core.errors import PluginError, UserError
from cai_core.pipeline.job import Job
from cai_core.pipeline.labels import preferences
from cai_core.pipeline.tables import EXAMPLES, read_prompts
from cai_core.store.canonical import canonical, write_json
from cai_core.store.tables import read_table
from cai_core.types.prompts import Prompt
from cai_core.types.records import conversation
from cai_core.types.reward import NoReward, Preference
from cai_core.types.rl import snapshot_folder
from cai_core.types.trainer import Example, TrainResult


def run_sft(job: Job, folder: Path) -> dict[str, Any]:
    """Trains on the revisions and the helpful answers (section 3.2); writes ``model/`` and ``training.json``."""
    rows = read_table(job.input("revise").path / "examples.parquet", EXAMPLES)
    examples = [Example(row["id"], conversation(row["messages"]), row["source"]) for row in rows]
    if not examples:
        raise UserError("no example to train on: every chain of `revise` failed", hint="see the revise stage's rows")
    result = job.component("trainer").train(Path(job.spec.models["sft_base"]), examples, folder / "model")
    return _finish(job, folder, result, {"ok": len(examples)})


def run_reward(job: Job, folder: Path) -> dict[str, Any]:
    """Fits the reward model on the soft labels (section 4.1), of which one that does not train may have none; writes
    ``model/`` and ``training.json``."""
    labels, unlabelled = _labels(job) if "label" in job.spec.inputs else ([], 0)
    model = job.component("reward_model")
    base = Path(job.spec.models["reward_base"]) if "reward_base" in job.spec.models else job.workdir
    result = model.fit(base, labels, folder / "model")
    return _finish(job, folder, result, {"ok": len(labels), "unlabelled": unlabelled})


def run_rl(job: Job, folder: Path) -> dict[str, Any]:
    """Improves the policy on the train prompts against the reward (section 4.1), or on the labels themselves, as the
    algorithm declares."""
    prompts: list[Prompt] = []
    counts: dict[str, int] = {}
    if "label" in job.spec.inputs:
        labels, unlabelled = _labels(job)
        counts = {"ok": len(labels), "unlabelled": unlabelled}
    if "prompts" in job.spec.inputs:
        prompts = [p for p in read_prompts(job.input("prompts").path / "prompts.parquet") if p.split == "train"]
        counts["ok"] = len(prompts)
    reward = job.component("reward_model") if "reward" in job.spec.inputs else NoReward()
    algorithm = job.component("rl_algorithm")
    result = algorithm.train(Path(job.spec.models["policy"]), prompts, reward, folder / "model")
    (options,) = (spec["options"] for spec in job.spec.components if spec["kind"] == "rl_algorithm")
    return _finish(job, folder, result, counts, options.get("snapshots") or ())


def _labels(job: Job) -> tuple[list[Preference], int]:
    """The labelled pairs that the stage may learn from, and the number of pairs without a label. Raises ``UserError``
    when there is none."""
    found, unlabelled = preferences(job.input("label"))
    if not found:
        raise UserError("no label to learn from: every comparison failed", hint="see the label stage's rows")
    mine = [pair for pair in found if job.may_learn(pair.prompt)]
    if not mine:
        raise UserError(
            f"heldout_reward.share leaves the stage {job.spec.stage_id} none of {len(found)} labelled pairs",
            where="heldout_reward.share",
            hint="give more conversations, change the share, or leave heldout_reward out",
        )
    return mine, unlabelled


def _finish(
    job: Job, folder: Path, result: TrainResult, counts: Mapping[str, Any], snapshots: Sequence[int] = ()
) -> dict[str, Any]:
    """Check what a training component left, and write down beside the weights what they were trained with."""
    if not job.first:
        return {}
    if not isinstance(result, TrainResult):
        raise PluginError(f"the training component returned {type(result).__name__}, not TrainResult")
    models = [folder / snapshot_folder(step) for step in (0, *snapshots)]
    for model in models:
        if not model.is_dir() or not any(model.iterdir()):
            raise PluginError(f"the training component wrote no model to {model.relative_to(folder)}")
    constitution = {key: getattr(job.constitution, key) for key in ("id", "version", "digest")}
    origin = {"stage": job.spec.kind, "digest": job.spec.digest, "constitution": constitution}
    for step, model in zip((0, *snapshots), models, strict=True):
        write_json(model / "cai-core.json", {"schema": 1, **origin, **({"step": step} if step else {})})
    record = {
        "metrics": {k: float(v) for k, v in result.metrics.items()},
        "curve": [{k: float(v) for k, v in row.items()} for row in result.curve],
        "notes": list(result.notes),
        "extra": dict(result.extra),
    }
    try:
        canonical(record)
    except (TypeError, ValueError) as error:
        raise PluginError(f"the training component reported what is not JSON: {error}") from error
    write_json(folder / "training.json", record)
    return {**counts, "metrics": record["metrics"], "notes": record["notes"]}
