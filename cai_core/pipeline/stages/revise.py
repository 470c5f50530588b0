"""``revise``: answer -> (critique -> revision) x rounds, one chain per red-team prompt (Bai et al. 2022, section 3.1).

Each round sees the prompt and the latest revision only, and draws its principle from the unit's own seed. Helpful
prompts are answered and mixed into the SFT examples (section 3.2). A failed step ends its chain as a typed row; the
revisions before it stay. What is unfit to learn from is left out of the examples, with the reason, and stays in the
chains.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai_core.errors import PluginError, UnitError, UserError
from cai_core.pipeline.executor import LocalExecutor, Outcome, Tally, Unit
from cai_core.pipeline.job import Job
from cai_core.pipeline.stages.examples import dropped_notes, write_examples
from cai_core.pipeline.stages.generate import (
    cut_at,
    cut_notes,
    failure_record,
    generation_unit,
    refuse_too_long,
    run_generation,
    sampling_from,
    shortened,
    windows,
)
from cai_core.pipeline.tables import CHAINS, messages_record, read_prompts
from cai_core.store.ledger import Row
from cai_core.store.tables import write_table
from cai_core.types.backend import GenerateRequest
from cai_core.types.critique import CritiqueTemplate
from cai_core.types.principles import Principle
from cai_core.types.prompts import Prompt
from cai_core.types.records import Conversation, ModelInput, UnitFailure


@dataclass(slots=True)
class _Chain:
    prompt: Prompt
    copy: int
    messages: Conversation  # the prompt, as much of it as fits the context
    answer: str | None = None
    cut_at: int | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    failure: UnitFailure | None = None

    def record(self) -> dict[str, Any]:
        """As a row of ``chains.parquet``."""
        return {
            "prompt_id": self.prompt.id,
            "copy": self.copy,
            "kind": self.prompt.kind,
            "prompt": messages_record(self.messages),
            "turns_cut": len(self.prompt.messages) - len(self.messages),
            "answer": self.answer,
            "cut_at": self.cut_at,
            "rounds": self.rounds,
            "failure": failure_record(self.failure),
        }


@dataclass(slots=True)
class _Step:
    chain: _Chain
    kind: str  # answer, critique or revision
    principle: Principle | None  # None for the answer
    draft: str  # what is criticised and revised; empty for the answer
    request: GenerateRequest


class _Revise:
    """The chains of some prompts."""

    def __init__(self, job: Job, prompts: Sequence[Prompt]) -> None:
        self.job = job
        self.settings = job.spec.settings
        self.sampling = sampling_from(self.settings["sampling"])
        self.template: CritiqueTemplate = job.component("critique_template")
        self.reader = job.component_identity("critique_template")
        self.principles = job.principles("revision")
        self.chains: list[_Chain] = []
        for prompt in prompts:
            copies = self.settings["helpful_samples"] if prompt.kind == "helpful" else 1
            self.chains += [_Chain(prompt, copy, prompt.messages) for copy in range(copies)]

    def initial(self) -> Iterable[Unit[_Step]]:
        for chain in self.chains:
            yield self._step(chain, "answer", None, "")

    def run(self, units: Iterator[Unit[_Step]]) -> Iterator[tuple[str, Outcome]]:
        kinds: dict[str, str] = {}

        def request(unit: Unit[_Step]) -> GenerateRequest:
            kinds[unit.name] = unit.work.kind
            return unit.work.request

        # Not a generator: once at its end, that would stay there.
        for name, completion, payload in run_generation(self.job, "generator", map(request, units)):
            if completion.failure:
                yield name, Outcome(payload, completion.failure)
                continue
            try:
                text, cut = completion.text, completion.finish == "length"
                if name in kinds:
                    text = getattr(self.template, f"read_{kinds.pop(name)}")(text, cut=cut)
                yield name, Outcome({**payload, "raw": completion.text, "text": text})
            except UnitError as error:
                yield name, Outcome({**payload, "raw": completion.text}, UnitFailure(error.kind, str(error)))

    def follow(self, unit: Unit[_Step], row: Row) -> Iterable[Unit[_Step]]:
        step = unit.work
        chain = step.chain
        if row.failure:
            refuse_too_long(self.job, chain.prompt, row.failure)
            if row.failure.kind == "too_long" and (shorter := shortened(chain.messages)):
                chain.messages = shorter
                return [self._step(chain, step.kind, step.principle, step.draft)]
            chain.failure = row.failure
            if step.kind != "answer":
                chain.rounds[-1]["failure"] = failure_record(row.failure)
            return []
        text = str(row.payload["text"])
        if step.kind == "answer":
            chain.answer, chain.cut_at = text, cut_at(self.job, row)
            return [self._round(chain, text)] if chain.prompt.kind == "red_team" else []
        chain.rounds[-1] |= {step.kind: text, f"{step.kind}_cut_at": cut_at(self.job, row)}
        if step.kind == "critique":
            return [self._step(chain, "revision", step.principle, step.draft)]
        return [self._round(chain, text)] if len(chain.rounds) < self.settings["rounds"] else []

    def _round(self, chain: _Chain, draft: str) -> Unit[_Step]:
        number = len(chain.rounds)
        rng = random.Random(self.job.unit_seed("principle", chain.prompt.id, "revise", number))
        (principle, *_) = self.job.draw(self.principles, chain.prompt, "critique", number, rng)
        chain.rounds.append(
            {
                "principle_id": principle.id,
                "critique_request": principle.critique,
                "critique": None,
                "critique_cut_at": None,
                "revision_request": principle.revision,
                "revision": None,
                "revision_cut_at": None,
                "failure": None,
            }
        )
        return self._step(chain, "critique" if self.template.critiques else "revision", principle, draft)

    def _step(self, chain: _Chain, kind: str, principle: Principle | None, draft: str) -> Unit[_Step]:
        number = len(chain.rounds) - 1
        parent = ""
        if principle is None:
            name = f"answer/{chain.prompt.id}/{chain.copy}"
            model_input = self.template.answer(chain.messages)
        else:
            before = f"revision/{chain.prompt.id}/{number - 1}" if number else f"answer/{chain.prompt.id}/{chain.copy}"
            name = f"{kind}/{chain.prompt.id}/{number}"
            if kind == "critique":
                parent = before
                model_input = self.template.critique(chain.messages, draft, principle)
            else:
                parent = f"critique/{chain.prompt.id}/{number}" if self.template.critiques else before
                critique = chain.rounds[-1]["critique"] or ""
                model_input = self.template.revision(chain.messages, draft, critique, principle)
        if not isinstance(model_input, ModelInput):
            raise PluginError(
                f"it returned {type(model_input).__name__}, not ModelInput",
                where=f"critique_template {self.job.component_spec('critique_template')['id']}",
            )
        unit = generation_unit(
            self.job, "generator", name, model_input, self.sampling, reader=self.reader, parent=parent
        )
        return Unit(unit.name, unit.identity, _Step(chain, kind, principle, draft, unit.work))


def run_revise(job: Job, folder: Path) -> dict[str, Any]:
    """Writes ``chains.parquet`` (every draft, critique and principle), ``examples.parquet`` (for SFT) and
    ``dropped.parquet`` (what is unfit for SFT, and why). A window of prompts is in memory at a time."""
    path = job.input("prompts").path / "prompts.parquet"
    template: CritiqueTemplate = job.component("critique_template")
    steps = job.spec.settings["rounds"] * (2 if template.critiques else 1)
    total, red_team = 0, 0
    for prompt in _prompts(path):
        red_team += prompt.kind == "red_team"
        total += 1 + steps if prompt.kind == "red_team" else job.spec.settings["helpful_samples"]
    if not red_team:
        raise UserError("there is no red-team prompt in the train split", hint="`revise` needs at least one")
    tally, cut = Tally(), 0

    def chains() -> Iterator[dict[str, Any]]:
        nonlocal cut
        for window in windows(_prompts(path)):
            stage = _Revise(job, window)
            LocalExecutor().run(stage, job.ledger(), job.progress, total=total, tally=tally)
            for chain in stage.chains:
                cut += chain.messages != chain.prompt.messages
                yield chain.record()

    count = write_table(folder / "chains.parquet", CHAINS, chains())
    examples = write_examples(job, folder)
    notes = cut_notes(cut) + dropped_notes(examples)
    return {**tally.as_info(), "chains": count, "cut_prompts": cut, **examples, "notes": notes}


def _prompts(path: Path) -> Iterator[Prompt]:
    return (p for p in read_prompts(path) if p.split == "train" and p.kind in ("red_team", "helpful"))
