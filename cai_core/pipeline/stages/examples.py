"""SFT examples out of chains: which revisions, and what is unfit to learn from.

Two passes over the chains on disk: the first counts sentences that many texts share, the second writes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cai_core.pipeline.job import Job
from cai_core.pipeline.tables import CHAINS, DROPPED, EXAMPLES
from cai_core.store.tables import read_table, write_table
from cai_core.text.duplicates import NearDuplicates, similarity
from cai_core.text.quality import Boilerplate, bare_refusal, repeats, too_many_emoji

NEAR = 0.9
"""Similarity of two answers from which the later one teaches nothing new: our choice, stricter than for prompts, since
revisions of one answer are meant to resemble it."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    id: str
    messages: list[dict[str, str]]
    source: str
    text: str
    before: str  # the draft that it revises; empty for an answer


def write_examples(job: Job, folder: Path) -> dict[str, Any]:
    """``examples.parquet`` and ``dropped.parquet`` from ``chains.parquet``; counts for the manifest."""
    settings = job.spec.settings
    boilerplate, total = Boilerplate(), 0
    for candidate in _candidates(folder, settings["train_on"]):
        boilerplate.count(candidate.text)
        total += 1
    seen = NearDuplicates(job.workdir / "answers.sqlite", NEAR)
    dropped: Counter[str] = Counter()
    rejects = job.workdir / "dropped.jsonl"  # there may be as many as there are texts

    def kept(file: IO[str]) -> Iterator[dict[str, Any]]:
        for number, candidate in enumerate(_candidates(folder, settings["train_on"]), start=1):
            # A millisecond each where texts are of one mould, so at the paper's size this takes minutes.
            job.progress.update(number, total, "choosing examples")
            reason, detail = _unfit(candidate, settings["filters"], boilerplate, seen)
            row = {"id": candidate.id, "messages": candidate.messages, "source": candidate.source}
            if reason:
                dropped[reason] += 1
                file.write(json.dumps({**row, "reason": reason, "detail": detail}) + "\n")
            else:
                yield row

    with rejects.open("w", encoding="utf-8") as file:
        count = write_table(folder / "examples.parquet", EXAMPLES, kept(file))
    seen.close()
    with rejects.open(encoding="utf-8") as file:
        write_table(folder / "dropped.parquet", DROPPED, map(json.loads, file))
    return {"examples": count, "dropped": dict(sorted(dropped.items()))}


def dropped_notes(info: Mapping[str, Any]) -> list[str]:
    """For the report, where examples were left out."""
    total = sum(info["dropped"].values())
    if not total:
        return []
    reasons = ", ".join(f"{count} {reason}" for reason, count in info["dropped"].items())
    return [f"{total} of {total + info['examples']} texts are left out of the SFT examples: {reasons}"]


def _candidates(folder: Path, train_on: str) -> Iterator[_Candidate]:
    for chain in read_table(folder / "chains.parquet", CHAINS):
        if chain["kind"] == "red_team":
            drafts = [chain["answer"], *(r["revision"] for r in chain["rounds"] if r["revision"])]
            chosen = [(i, drafts[i + 1], drafts[i]) for i in range(len(drafts) - 1)]
            chosen = chosen if train_on == "all" else chosen[-1:]
            source = "revision"
        else:
            chosen = [(chain["copy"], chain["answer"], "")] if chain["answer"] else []
            source = "helpful"
        for index, text, before in chosen:
            messages = [*chain["prompt"], {"role": "assistant", "content": text}]
            yield _Candidate(f"{source}/{chain['prompt_id']}/{index}", messages, source, text, before)


def _unfit(
    candidate: _Candidate, filters: Mapping[str, bool], boilerplate: Boilerplate, seen: NearDuplicates
) -> tuple[str, str]:
    """Reason and detail; empty for what is fit. The first reason that applies counts."""
    if filters["repetition"] and repeats(candidate.text):
        return "repetition", ""
    if filters["boilerplate"] and too_many_emoji(candidate.text):
        return "boilerplate", "emoji"
    if filters["boilerplate"] and boilerplate.dominates(candidate.text):
        return "boilerplate", "sentences that many texts share"
    if filters["refusal"] and bare_refusal(candidate.text):
        return "refusal", ""
    if filters["no_op"] and candidate.before and similarity(candidate.text, candidate.before) == 1:
        return "no_op", ""
    if filters["near_duplicate"] and (near := seen.add_new(candidate.id, candidate.text)):
        return "near_duplicate", f"{near[1]:.0%} like {near[0]}"
    return "", ""
