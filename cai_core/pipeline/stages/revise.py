"""``revise``: answer -> (critique -> revision) x rounds, one chain per red-team prompt (Bai et al. 2022, section 3.1).

Each round sees the prompt and the latest revision only, and draws its principle from the unit's own seed. Helpful
prompts are answered and mixed into the SFT examples (section 3.2). A failed step ends its chain as a typed row; the
revisions before it stay.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai_core.errors import PluginError, UnitError, UserError
from cai_core.pipeline.executor import LocalExecutor, Outcome, Unit
from cai_core.pipeline.job import Job
from cai_core.pipeline.stages.generate import (
    failure_record,
    generation_unit,
    refuse_too_long,
    run_generation,
    sampling_from,
)
from cai_core.pipeline.tables import CHAINS, EXAMPLES, messages_record, read_prompts
from cai_core.store.ledger import Row
from cai_core.store.tables import write_table
from cai_core.types.backend import GenerateRequest
from cai_core.types.critique import CritiqueTemplate
from cai_core.types.principles import Principle
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message, ModelInput, UnitFailure


@dataclass(slots=True)
class _Chain:
    prompt: Prompt
    answer: str | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    failure: UnitFailure | None = None

    def latest(self) -> str:
        revisions = [entry["revision"] for entry in self.rounds if entry["revision"]]
        return str(revisions[-1] if revisions else self.answer)


@dataclass(slots=True)
class _Step:
    chain: _Chain
    kind: str  # answer, critique or revision
    request: GenerateRequest


class _Revise:
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
            self.chains += [_Chain(prompt) for _ in range(copies)]

    def total(self) -> int:
        steps = self.settings["rounds"] * (2 if self.template.critiques else 1)
        return sum(1 + (steps if chain.prompt.kind == "red_team" else 0) for chain in self.chains)

    def initial(self) -> Iterable[Unit[_Step]]:
        seen: dict[str, int] = {}
        for chain in self.chains:
            copy = seen[chain.prompt.id] = seen.get(chain.prompt.id, -1) + 1
            yield self._unit(chain, "answer", f"answer/{chain.prompt.id}/{copy}", None)

    def run(self, units: Sequence[Unit[_Step]]) -> Iterator[tuple[str, Outcome]]:
        steps = {unit.name: unit.work for unit in units}
        asked = [Unit(unit.name, unit.identity, unit.work.request) for unit in units]
        for name, completion, payload in run_generation(self.job, "generator", asked):
            if completion.failure:
                yield name, Outcome(payload, completion.failure)
                continue
            read = getattr(self.template, f"read_{steps[name].kind}")
            try:
                yield name, Outcome({**payload, "raw": completion.text, "text": read(completion.text)})
            except UnitError as error:
                yield name, Outcome(payload, UnitFailure(error.kind, str(error)))

    def follow(self, unit: Unit[_Step], row: Row) -> Iterable[Unit[_Step]]:
        chain, kind = unit.work.chain, unit.work.kind
        if row.failure:
            if kind == "answer":
                refuse_too_long(chain.prompt, row.failure)
            chain.failure = row.failure
            if chain.rounds and kind != "answer":
                chain.rounds[-1]["failure"] = failure_record(row.failure)
            return
        text = str(row.payload["text"])
        if kind == "answer":
            chain.answer = text
            if chain.prompt.kind != "red_team":
                return
            yield self._round(chain)
        elif kind == "critique":
            chain.rounds[-1]["critique"] = text
            yield self._revision(chain, chain.rounds[-1], unit.name)
        else:
            chain.rounds[-1]["revision"] = text
            if len(chain.rounds) < self.settings["rounds"]:
                yield self._round(chain)

    def _round(self, chain: _Chain) -> Unit[_Step]:
        number = len(chain.rounds)
        rng = random.Random(self.job.unit_seed("principle", chain.prompt.id, "revise", number))
        (principle, *_) = self.job.draw(self.principles, chain.prompt, "critique", number, rng)
        entry = {
            "principle_id": principle.id,
            "critique_request": principle.critique,
            "critique": None,
            "revision_request": principle.revision,
            "revision": None,
            "failure": None,
        }
        response = chain.latest()
        chain.rounds.append(entry)
        if not self.template.critiques:
            return self._revision(chain, entry, "", principle, response)
        model_input = self.template.critique(chain.prompt.messages, response, principle)
        return self._unit(chain, "critique", f"critique/{chain.prompt.id}/{number}", model_input)

    def _revision(
        self,
        chain: _Chain,
        entry: dict[str, Any],
        parent: str,
        principle: Principle | None = None,
        response: str | None = None,
    ) -> Unit[_Step]:
        number = len(chain.rounds) - 1
        principle = principle or next(p for p in self.principles if p.id == entry["principle_id"])
        response = response if response is not None else chain.latest()
        model_input = self.template.revision(chain.prompt.messages, response, entry["critique"] or "", principle)
        return self._unit(chain, "revision", f"revision/{chain.prompt.id}/{number}", model_input, parent)

    def _unit(self, chain: _Chain, kind: str, name: str, model_input: Any, parent: str = "") -> Unit[_Step]:
        model_input = model_input or self.template.answer(chain.prompt.messages)
        if not isinstance(model_input, ModelInput):
            raise PluginError(
                f"it returned {type(model_input).__name__}, not ModelInput",
                where=f"critique_template {self.job.component_spec('critique_template')['id']}",
            )
        unit = generation_unit(
            self.job, "generator", name, model_input, self.sampling, reader=self.reader, parent=parent
        )
        return Unit(unit.name, unit.identity, _Step(chain, kind, unit.work))

    def examples(self) -> Iterator[dict[str, Any]]:
        """SFT examples: revisions of red-team prompts, answers to helpful ones."""
        for number, chain in enumerate(self.chains):
            if chain.prompt.kind == "red_team":
                revisions = [(i, r["revision"]) for i, r in enumerate(chain.rounds) if r["revision"]]
                chosen = revisions if self.settings["train_on"] == "all" else revisions[-1:]
                source = "revision"
            else:
                chosen = [(number, chain.answer)] if chain.answer else []
                source = "helpful"
            for index, text in chosen:
                turns = (*chain.prompt.messages, Message("assistant", text))
                yield {
                    "id": f"{source}/{chain.prompt.id}/{index}",
                    "messages": messages_record(turns),
                    "source": source,
                }


def run_revise(job: Job, folder: Path) -> dict[str, Any]:
    """Writes ``chains.parquet`` (every draft, critique and principle) and ``examples.parquet`` (for SFT)."""
    prompts = [
        p
        for p in read_prompts(job.input("prompts").path / "prompts.parquet")
        if p.split == "train" and p.kind in ("red_team", "helpful")
    ]
    if not any(p.kind == "red_team" for p in prompts):
        raise UserError("there is no red-team prompt in the train split", hint="`revise` needs at least one")
    stage = _Revise(job, prompts)
    tally = LocalExecutor().run(stage, job.ledger(), job.progress, total=stage.total())
    chains = [
        {
            "prompt_id": chain.prompt.id,
            "kind": chain.prompt.kind,
            "prompt": messages_record(chain.prompt.messages),
            "answer": chain.answer,
            "rounds": chain.rounds,
            "failure": failure_record(chain.failure),
        }
        for chain in stage.chains
    ]
    write_table(folder / "chains.parquet", CHAINS, chains)
    examples = write_table(folder / "examples.parquet", EXAMPLES, stage.examples())
    return {**tally.as_info(), "chains": len(chains), "examples": examples}
