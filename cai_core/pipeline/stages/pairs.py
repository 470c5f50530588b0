"""``pairs``: two answers per red-team prompt from the current policy, at T = 1 (section 4.1: one pair per prompt); or
pairs that are there already, from a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_core.errors import UserError
from cai_core.pipeline.executor import LocalExecutor, Outcome, Tally, Unit
from cai_core.pipeline.job import Job
from cai_core.pipeline.stages.generate import (
    cut_at,
    cut_notes,
    failure_record,
    generation_unit,
    plain_outcome,
    refuse_too_long,
    run_generation,
    sampling_from,
    shortened,
    windows,
)
from cai_core.pipeline.tables import PAIRS, messages_record, read_prompts
from cai_core.store.canonical import file_sha256, write_json
from cai_core.store.ledger import Row
from cai_core.store.tables import write_table
from cai_core.text.pairs import read_pairs
from cai_core.types.backend import GenerateRequest
from cai_core.types.prompts import Prompt
from cai_core.types.records import Conversation, ModelInput, UnitFailure

# People's labels of pairs from a file: id -> probability that A is better.
HUMAN = "human.json"
# What the file says of its pairs' origin and weight, where it says something: id -> {"source", "weight"}.
MIXTURE = "mixture.json"


class Samples:
    """``copies`` answers to each prompt; ``rows`` holds what came of them, by (prompt id, copy).

    A conversation that does not fit the model's context loses its oldest exchange, and is asked again; ``cut`` counts
    the prompts concerned.
    """

    def __init__(self, job: Job, role: str, prompts: Sequence[Prompt], copies: int, label: str) -> None:
        self.job = job
        self.role = role
        self.prompts = prompts
        self.copies = copies
        self.label = label
        self.sampling = sampling_from(job.spec.settings["sampling"])
        self.rows: dict[tuple[str, int], Row] = {}
        self.cut: set[str] = set()

    def initial(self) -> Iterable[Unit[_Sample]]:
        """See ``UnitStage``."""
        for prompt in self.prompts:
            for copy in range(self.copies):
                yield self._unit(prompt, copy, prompt.messages)

    def run(self, units: Iterator[Unit[_Sample]]) -> Iterator[tuple[str, Outcome]]:
        """See ``UnitStage``."""
        for name, completion, payload in run_generation(self.job, self.role, map(_request, units)):
            yield name, plain_outcome(completion, payload)

    def follow(self, unit: Unit[_Sample], row: Row) -> Iterable[Unit[_Sample]]:
        """See ``UnitStage``."""
        sample = unit.work
        refuse_too_long(self.job, sample.prompt, row.failure)
        if row.failure and row.failure.kind == "too_long":
            shorter = shortened(sample.request.input.messages)
            if shorter is not None:
                self.cut.add(sample.prompt.id)
                return [self._unit(sample.prompt, sample.copy, shorter)]
        self.rows[sample.prompt.id, sample.copy] = row
        return []

    def _unit(self, prompt: Prompt, copy: int, messages: Conversation) -> Unit[_Sample]:
        name = f"{self.label}/{prompt.id}/{copy}"
        unit = generation_unit(self.job, self.role, name, ModelInput(messages=messages), self.sampling)
        return Unit(unit.name, unit.identity, _Sample(prompt, copy, unit.work))


def _request(unit: Unit[_Sample]) -> GenerateRequest:
    return unit.work.request


@dataclass(frozen=True, slots=True)
class _Sample:
    prompt: Prompt
    copy: int
    request: GenerateRequest


def sampled(
    job: Job, prompts: Iterable[Prompt], copies: int, label: str, tally: Tally, cut: set[str], total: int
) -> Iterator[tuple[Prompt, list[Row]]]:
    """Each prompt with its rows, in order; a window of prompts at a time, so that memory stays constant."""
    for window in windows(prompts):
        stage = Samples(job, "policy", window, copies, label)
        LocalExecutor().run(stage, job.ledger(), job.progress, total=total, tally=tally)
        cut |= stage.cut
        for prompt in window:
            yield prompt, [stage.rows[prompt.id, copy] for copy in range(copies)]


def run_pairs(job: Job, folder: Path) -> dict[str, Any]:
    """Writes ``pairs.parquet``. A pair with a failed answer is a row with that failure; equal answers are counted."""
    if "file" in job.spec.settings:
        return _from_file(job, folder)
    path = job.input("prompts").path / "prompts.parquet"
    count = sum(1 for _ in _train(path))
    tally, cut, equal = Tally(), set[str](), 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal equal
        for prompt, (first, second) in sampled(job, _train(path), 2, "pair", tally, cut, 2 * count):
            a, b = first.payload.get("text"), second.payload.get("text")
            failure = failure_record(first.failure or second.failure)
            equal += failure is None and a == b
            yield {
                "id": prompt.id,
                "prompt": messages_record(prompt.messages),
                "a": a,
                "b": b,
                "cut_at": {"a": cut_at(job, first), "b": cut_at(job, second)},
                "failure": failure,
            }

    pairs = write_table(folder / "pairs.parquet", PAIRS, rows())
    counts = {"pairs": pairs, "equal_answers": equal, "cut_prompts": len(cut)}
    return {**tally.as_info(), **counts, "notes": cut_notes(len(cut))}


def _from_file(job: Job, folder: Path) -> dict[str, Any]:
    path = Path(job.spec.settings["file"])
    if file_sha256(path) != job.spec.settings["sha256"]:
        raise UserError("the file has changed since the run began", where=str(path), hint="give the same command again")
    pairs = read_pairs(path, job.spec.settings["limit"])
    rows = (
        {
            "id": pair.id,
            "prompt": messages_record(pair.prompt),
            "a": pair.a,
            "b": pair.b,
            "failure": failure_record(UnitFailure("unparseable", pair.failure) if pair.failure else None),
        }
        for pair in pairs
    )
    write_table(folder / "pairs.parquet", PAIRS, rows)
    given = {p.id: {"source": p.source, "weight": p.weight} for p in pairs if p.source or p.weight != 1.0}
    if given:
        write_json(folder / MIXTURE, given)
    human = {pair.id: pair.p_a for pair in pairs if pair.p_a is not None}
    if human:
        write_json(folder / HUMAN, human)
    failed = sum(bool(pair.failure) for pair in pairs)
    equal = sum(pair.a == pair.b and not pair.failure for pair in pairs)
    counts = {"pairs": len(pairs), "equal_answers": equal, "human": len(human)}
    return {"ok": len(pairs) - failed, "failed": {"unparseable": failed} if failed else {}, **counts, "notes": []}


def _train(path: Path) -> Iterator[Prompt]:
    return (p for p in read_prompts(path) if p.split == "train" and p.kind == "red_team")
