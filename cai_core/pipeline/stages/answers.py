"""``answers``: one model's answers to the held-out prompts, made once and shared by all evaluators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai_core.errors import UserError
from cai_core.pipeline.executor import Tally
from cai_core.pipeline.job import Job
from cai_core.pipeline.stages.generate import cut_notes, failure_record
from cai_core.pipeline.stages.pairs import sampled
from cai_core.pipeline.tables import ANSWERS, messages_record, read_prompts
from cai_core.store.tables import write_table
from cai_core.types.prompts import Prompt


def run_answers(job: Job, folder: Path) -> dict[str, Any]:
    """Writes ``answers.parquet``. Every model gets the same seed for the same prompt."""
    path = job.input("prompts").path / "prompts.parquet"
    count = sum(1 for _ in _heldout(path))
    if not count:
        raise UserError("no held-out prompt to evaluate on", hint="give prompts a held-out split, or drop `evaluate`")
    tally, cut = Tally(), set[str]()
    rows = (
        {
            "prompt_id": prompt.id,
            "kind": prompt.kind,
            "prompt": messages_record(prompt.messages),
            "text": None if row.failure else row.payload["text"],
            "failure": failure_record(row.failure),
        }
        for prompt, (row,) in sampled(job, _heldout(path), 1, "eval", tally, cut, count)
    )
    write_table(folder / "answers.parquet", ANSWERS, rows)
    return {**tally.as_info(), "cut_prompts": len(cut), "notes": cut_notes(len(cut))}


def _heldout(path: Path) -> Iterator[Prompt]:
    return (p for p in read_prompts(path) if p.split == "heldout")
