"""``answers``: one model's answers to the held-out prompts, made once and shared by all evaluators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai_core.errors import UserError
from cai_core.pipeline.executor import LocalExecutor
from cai_core.pipeline.job import Job
from cai_core.pipeline.stages.generate import failure_record
from cai_core.pipeline.stages.pairs import Samples
from cai_core.pipeline.tables import ANSWERS, messages_record, read_prompts
from cai_core.store.tables import write_table


def run_answers(job: Job, folder: Path) -> dict[str, Any]:
    """Writes ``answers.parquet``. Every model gets the same seed for the same prompt."""
    prompts = [p for p in read_prompts(job.input("prompts").path / "prompts.parquet") if p.split == "heldout"]
    if not prompts:
        raise UserError("no held-out prompt to evaluate on", hint="give prompts a held-out split, or drop `evaluate`")
    stage = Samples(job, "policy", prompts, 1, "eval")
    tally = LocalExecutor().run(stage, job.ledger(), job.progress, total=len(prompts))
    rows = []
    for prompt in prompts:
        row = stage.rows[prompt.id, 0]
        rows.append(
            {
                "prompt_id": prompt.id,
                "kind": prompt.kind,
                "prompt": messages_record(prompt.messages),
                "text": None if row.failure else row.payload["text"],
                "failure": failure_record(row.failure),
            }
        )
    write_table(folder / "answers.parquet", ANSWERS, rows)
    return tally.as_info()
