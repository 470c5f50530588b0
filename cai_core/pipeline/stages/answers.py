"""``answers``: one model's answers to the held-out prompts, made once and shared by all evaluators."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cai_core.errors import CAIError, UserError
from cai_core.pipeline.executor import Tally
from cai_core.pipeline.job import Job
from cai_core.pipeline.stages.generate import cut_at, cut_notes, failure_record
from cai_core.pipeline.stages.pairs import sampled
from cai_core.pipeline.tables import ANSWERS, messages_record, read_prompts
from cai_core.store.ledger import Row
from cai_core.store.tables import write_table
from cai_core.types.prompts import Prompt
from cai_core.types.reward import Exchange, RewardModel


def run_answers(job: Job, folder: Path) -> dict[str, Any]:
    """Writes ``answers.parquet``. Every model gets the same seed for the same prompt."""
    path = job.input("prompts").path / "prompts.parquet"
    count = sum(1 for _ in _heldout(path))
    if not count:
        raise UserError("no held-out prompt to evaluate on", hint="give prompts a held-out split, or drop `evaluate`")
    tally, cut = Tally(), set[str]()
    n = job.spec.settings.get("best_of", 1)
    best = _Best(job) if n > 1 else None

    def rows() -> Iterator[dict[str, Any]]:
        for prompt, samples in sampled(job, _heldout(path), n, "eval", tally, cut, n * count):
            row = samples[0] if best is None else best.of(prompt, samples)
            yield {
                "prompt_id": prompt.id,
                "kind": prompt.kind,
                "prompt": messages_record(prompt.messages),
                "text": None if row.failure else row.payload["text"],
                "cut_at": cut_at(job, row),
                "failure": failure_record(row.failure),
            }

    write_table(folder / "answers.parquet", ANSWERS, rows())
    notes = [*cut_notes(len(cut)), *(best.notes(n) if best is not None else ())]
    return {**tally.as_info(), "cut_prompts": len(cut), "notes": notes}


class _Best:
    """Picks the sample with the highest reward: best-of-n at inference time."""

    def __init__(self, job: Job) -> None:
        self.reward: RewardModel = job.component("reward_model")
        self.means: list[float] = []
        self.highest: list[float] = []

    def of(self, prompt: Prompt, samples: Sequence[Row]) -> Row:
        """The first of those with the highest reward; a failure where all failed. Raises ``CAIError`` on a reward that
        is not finite."""
        there = [row for row in samples if not row.failure]
        if not there:
            return samples[0]
        exchanges = [Exchange(f"{prompt.id}/{k}", prompt.messages, row.payload["text"]) for k, row in enumerate(there)]
        scores = self.reward.score(exchanges)
        if len(scores) != len(there) or not all(math.isfinite(score) for score in scores):
            raise CAIError(f"the rewards of {len(there)} answers to {prompt.id!r} are {scores}", where="reward")
        self.means.append(math.fsum(scores) / len(scores))
        self.highest.append(max(scores))
        return there[scores.index(max(scores))]

    def notes(self, n: int) -> Iterator[str]:
        """What it gained at most, and how far it is from the policy at most."""
        if self.means:
            mean, highest = (math.fsum(values) / len(values) for values in (self.means, self.highest))
            yield (
                f"the best of {n} by the reward: {highest:.3f} on average, against {mean:.3f} of one sample. That is "
                f"at most log {n} - {n - 1}/{n} = {math.log(n) - (n - 1) / n:.2f} nats from the policy"
            )


def _heldout(path: Path) -> Iterator[Prompt]:
    return (p for p in read_prompts(path) if p.split == "heldout")
