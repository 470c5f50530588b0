"""Run folders and stores as a run leaves them, written without a model: for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_core.pipeline.tables import ANSWERS, EVAL_ROWS, PROMPTS
from cai_core.store.artifacts import Artifacts
from cai_core.store.canonical import digest
from cai_core.store.tables import write_table


def evaluated_run(
    folder: Path,
    store: Path,
    name: str,
    values: Mapping[str, Mapping[str, float]],
    *,
    prompts: Mapping[str, str] | None = None,
    answer: str = "an answer",
    options: Mapping[str, Any] | None = None,
    clusters: Mapping[str, str] | None = None,
    reward: str = "",
    recipe: Mapping[str, Any] | None = None,
    status: str = "ok",
    failed: Sequence[str] = (),
    payload: Mapping[str, Any] | None = None,
    unit: str = "rate",
    direction: str = "lower",
) -> Path:
    """A run with the models of ``values`` (model -> item -> value), scored by one evaluator ``refusal``; with
    ``reward``, the digest of a reward model, by ``preference_model``. Returns its folder."""
    artifacts = Artifacts(store / "artifacts")
    texts = prompts if prompts is not None else {item: f"prompt {item}" for some in values.values() for item in some}
    stages: list[dict[str, Any]] = []

    def put(stage: str, kind: str, identity: Mapping[str, Any], write: Any, info: Mapping[str, Any]) -> str:
        sha = digest([name, stage, identity])
        if artifacts.find(kind, sha) is None:
            path = artifacts.begin(kind, sha)
            write(path)
            artifacts.commit(path, kind, sha, identity, info)
        stages.append({"id": stage, "kind": kind, "digest": sha, "status": "ok", "info": {"failed": {}}})
        return sha

    def turns(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    prompt_rows = [
        {"id": i, "messages": turns(text), "kind": "helpful", "split": "heldout", "source": "", "tags": []}
        for i, text in texts.items()
    ]
    put("prompts", "prompts", {}, _writer("prompts.parquet", PROMPTS, prompt_rows), {})
    for model in values:
        rows = [
            {"prompt_id": i, "kind": "helpful", "prompt": turns(text), "text": f"{answer} of {model}", "failure": None}
            for i, text in texts.items()
        ]
        identity = {"settings": {"sampling": {"temperature": 1.0}}}
        put(f"answers[{model}]", "answers", identity, _writer("answers.parquet", ANSWERS, rows), {})

    evaluator = "preference_model" if reward else "refusal"
    metrics = [
        {
            "id": f"{evaluator}.harmless", "label": "refuses harmless prompts", "evaluator": evaluator, "model": model,
            "value": sum(items.values()) / len(items) if items else None, "low": 0.0, "high": 1.0, "n": len(items),
            "failed": len(failed), "interval": "Wilson 95 %", "unit": unit, "direction": direction, "note": "",
            "per_item": dict(items), "cluster": dict(clusters or {}),
        }
        for model, items in values.items()
    ]  # fmt: skip
    scored = [
        {"evaluator": evaluator, "model": model, "id": i, "values": {"refused": value}, "failure": None}
        | {"payload": dict(payload or {}) | ({"answer": f"{answer} of {model}"} if payload else {})}
        for model, items in values.items()
        for i, value in items.items()
    ]

    def evaluation(path: Path) -> None:
        (path / "metrics.json").write_text(json.dumps(metrics))
        write_table(path / "rows.parquet", EVAL_ROWS, scored)

    components = [{"kind": "evaluator", "id": f"cai-core/{evaluator}", "revision": 1, "options": dict(options or {})}]
    if reward:
        components.append({"kind": "reward_model", "id": "cai-core/preference", "revision": 1, "options": {}})
    identity = {
        "components": components,
        "inputs": {"reward": reward} if reward else {},
        "models": {model: f"digest of {model}" for model in values},
        "settings": {"models": list(values)},
    }
    if status in ("ok", "partial"):
        put("evaluate", "evaluate", identity, evaluation, {})
    else:
        stages.append({"id": "evaluate", "kind": "evaluate", "digest": "0" * 64, "status": status})
    run = folder / name
    run.mkdir(parents=True)
    record = {
        "run_id": name, "recipe_name": "r", "recipe": dict(recipe or {}), "seed": 1, "status": status, "stages": stages,
        "constitution": {"id": "c", "digest": "d" * 64},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(record))
    return run


def _writer(name: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Callable[[Path], object]:
    return lambda path: write_table(path / name, columns, rows)
