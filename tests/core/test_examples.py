"""What becomes an SFT example, and what is left out with which reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai_core.pipeline.stages.examples import write_examples
from cai_core.pipeline.tables import CHAINS, DROPPED, EXAMPLES
from cai_core.store.tables import read_table, write_table
from cai_core.testing.context import TestProgress

ON = dict.fromkeys(("repetition", "boilerplate", "refusal", "no_op", "near_duplicate"), True)
SPEECH = [
    "Talk to him first, because he may not know how much the noise bothers you at night.",
    "A written list of what was agreed helps both sides remember it later on.",
    "Cook the lentils for half an hour and add salt only at the very end.",
    "Trains are often cheaper when you book them several weeks before the journey.",
    "A doctor can tell you whether that medicine goes together with the other one.",
    "Try a smaller pot, so that the roots fill it before the winter comes.",
]


def chain(number: int, answer: str, *revisions: str | None, kind: str = "red_team") -> dict[str, Any]:
    return {
        "prompt_id": f"p{number}",
        "copy": 0,
        "kind": kind,
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "turns_cut": 0,
        "answer": answer,
        "rounds": [{"revision": revision} for revision in revisions],
    }


def run(tmp_path: Path, chains: list[dict[str, Any]], train_on: str = "all", **filters: bool) -> Any:
    write_table(tmp_path / "chains.parquet", CHAINS, chains)
    settings = {"train_on": train_on, "filters": {**ON, **filters}}
    job: Any = SimpleNamespace(spec=SimpleNamespace(settings=settings), workdir=tmp_path, progress=TestProgress())
    info = write_examples(job, tmp_path)
    examples = list(read_table(tmp_path / "examples.parquet", EXAMPLES))
    dropped = {row["id"]: row["reason"] for row in read_table(tmp_path / "dropped.parquet", DROPPED)}
    assert info == {"examples": len(examples), "dropped": dict(Counter(dropped.values()))}
    return [row["id"] for row in examples], dropped


@pytest.mark.parametrize(
    ("train_on", "ids"), [("all", ["revision/p0/0", "revision/p0/1"]), ("last", ["revision/p0/1"])]
)
def test_all_revisions_or_the_last(tmp_path: Path, train_on: str, ids: list[str]) -> None:
    kept, dropped = run(tmp_path, [chain(0, "Shout.", SPEECH[0], SPEECH[1], None)], train_on)
    assert kept == ids
    assert dropped == {}


def test_answers_to_helpful_prompts_are_examples_and_drafts_are_not(tmp_path: Path) -> None:
    kept, _ = run(tmp_path, [chain(0, SPEECH[0], kind="helpful"), chain(1, SPEECH[1])])
    assert kept == ["helpful/p0/0"]


@pytest.mark.parametrize(
    ("revision", "reason"),
    [
        ("no no no no no no no", "repetition"),
        ("请先和他谈一谈" * 7, "repetition"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("TALK to him!", "no_op"),
        ("You can do it 🎉🎉🎉", "boilerplate"),
    ],
)
def test_what_is_unfit_is_left_out_with_its_reason(tmp_path: Path, revision: str, reason: str) -> None:
    kept, dropped = run(tmp_path, [chain(0, "Talk to him.", revision), chain(1, "Shout.", SPEECH[1])])
    assert kept == ["revision/p1/0"]
    assert dropped == {"revision/p0/0": reason}
    kept, dropped = run(tmp_path, [chain(0, "Talk to him.", revision)], **{reason: False})
    assert kept == ["revision/p0/0"]
    assert dropped == {}


def test_near_duplicates_keep_the_first(tmp_path: Path) -> None:
    chains = [chain(0, "x", SPEECH[0]), chain(1, "y", SPEECH[0].upper()), chain(2, "z", SPEECH[1])]
    kept, dropped = run(tmp_path, chains)
    assert kept == ["revision/p0/0", "revision/p2/0"]
    assert dropped == {"revision/p1/0": "near_duplicate"}


def test_answers_of_signs_alone_are_no_duplicates_of_each_other(tmp_path: Path) -> None:
    kept, dropped = run(tmp_path, [chain(0, "🙂", "🎉"), chain(1, "?", "👍"), chain(2, "x", "🎉"), chain(3, "!", "!")])
    assert kept == ["revision/p0/0", "revision/p1/0"]
    assert dropped == {"revision/p2/0": "near_duplicate", "revision/p3/0": "no_op"}


def test_a_sentence_that_all_share_is_boilerplate_where_it_is_most_of_the_text(tmp_path: Path) -> None:
    habit = "You are valid and valued and cared for here."
    chains = [chain(n, "x", f"{habit} {n} things.") for n in range(10)]
    chains += [chain(20 + n, "x", f"{text} {habit}") for n, text in enumerate(SPEECH)]
    kept, dropped = run(tmp_path, chains)
    assert kept == [f"revision/p{20 + n}/0" for n in range(len(SPEECH))]
    assert set(dropped.values()) == {"boilerplate"}
