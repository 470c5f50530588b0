"""``pairs``: two answers per red-team prompt from the current policy, at T = 1 (section 4.1: one pair per prompt)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cai_core.pipeline.executor import LocalExecutor, Outcome, Unit
from cai_core.pipeline.job import Job
from cai_core.pipeline.stages.generate import (
    failure_record,
    generation_unit,
    plain_outcome,
    refuse_too_long,
    run_generation,
    sampling_from,
)
from cai_core.pipeline.tables import PAIRS, messages_record, read_prompts
from cai_core.store.ledger import Row
from cai_core.store.tables import write_table
from cai_core.types.backend import GenerateRequest
from cai_core.types.prompts import Prompt
from cai_core.types.records import ModelInput


class Samples:
    """``copies`` answers to each prompt; ``rows`` holds what came of them, by (prompt id, copy)."""

    def __init__(self, job: Job, role: str, prompts: Sequence[Prompt], copies: int, label: str) -> None:
        self.job = job
        self.role = role
        self.prompts = prompts
        self.copies = copies
        self.label = label
        self.sampling = sampling_from(job.spec.settings["sampling"])
        self.rows: dict[tuple[str, int], Row] = {}
        self._units: dict[str, tuple[Prompt, int]] = {}

    def initial(self) -> Iterable[Unit[GenerateRequest]]:
        """See ``UnitStage``."""
        for prompt in self.prompts:
            for copy in range(self.copies):
                name = f"{self.label}/{prompt.id}/{copy}"
                self._units[name] = (prompt, copy)
                yield generation_unit(
                    self.job, self.role, name, ModelInput(messages=prompt.messages), self.sampling
                )

    def run(self, units: Sequence[Unit[GenerateRequest]]) -> Iterator[tuple[str, Outcome]]:
        """See ``UnitStage``."""
        for name, completion, payload in run_generation(self.job, self.role, units):
            yield name, plain_outcome(completion, payload)

    def follow(self, unit: Unit[GenerateRequest], row: Row) -> Iterable[Unit[GenerateRequest]]:
        """See ``UnitStage``."""
        prompt, copy = self._units[unit.name]
        refuse_too_long(prompt, row.failure)
        self.rows[prompt.id, copy] = row
        return ()


def run_pairs(job: Job, folder: Path) -> dict[str, Any]:
    """Writes ``pairs.parquet``. A pair with a failed answer is a row with that failure; equal answers are counted."""
    prompts = [
        p
        for p in read_prompts(job.input("prompts").path / "prompts.parquet")
        if p.split == "train" and p.kind == "red_team"
    ]
    stage = Samples(job, "policy", prompts, 2, "pair")
    tally = LocalExecutor().run(stage, job.ledger(), job.progress, total=2 * len(prompts))
    rows = []
    for prompt in prompts:
        first, second = stage.rows[prompt.id, 0], stage.rows[prompt.id, 1]
        rows.append(
            {
                "id": prompt.id,
                "prompt": messages_record(prompt.messages),
                "a": first.payload.get("text"),
                "b": second.payload.get("text"),
                "failure": failure_record(first.failure or second.failure),
            }
        )
    write_table(folder / "pairs.parquet", PAIRS, rows)
    equal = sum(row["a"] == row["b"] for row in rows if not row["failure"])
    return {**tally.as_info(), "pairs": len(rows), "equal_answers": equal}
