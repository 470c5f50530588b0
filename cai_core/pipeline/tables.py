"""The columns of every table that stages write, and their records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cai_core.store.tables import read_table, write_table
from cai_core.types.prompts import Prompt
from cai_core.types.records import Conversation, conversation

# ``cut_at`` of a text: see ``cut_at`` in ``stages/generate.py``. Tables of older versions lack it: then it is null.
PROMPTS = {"id": "str", "messages": "messages", "kind": "str", "split": "str", "source": "str", "tags": "json"}
CHAINS = {
    "prompt_id": "str",
    "copy": "int",
    "kind": "str",
    "prompt": "messages",
    "turns_cut": "int",
    "answer": "str",
    "cut_at": "int",  # of the answer; rounds have ``critique_cut_at`` and ``revision_cut_at``
    "rounds": "json",
    "failure": "json",
}
EXAMPLES = {"id": "str", "messages": "messages", "source": "str"}
DROPPED = {**EXAMPLES, "reason": "str", "detail": "str"}
PAIRS = {"id": "str", "prompt": "messages", "a": "str", "b": "str", "cut_at": "json", "failure": "json"}
LABELS = {**PAIRS, "p_a": "float", "principles": "json", "evidence": "json"}
ANSWERS = {
    "prompt_id": "str", "kind": "str", "prompt": "messages", "text": "str", "cut_at": "int", "failure": "json",
}  # fmt: skip
EVAL_ROWS = {"evaluator": "str", "model": "str", "id": "str", "payload": "json", "values": "json", "failure": "json"}


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> int:
    """Write prompts; returns their number."""
    return write_table(path, PROMPTS, (prompt_record(prompt) for prompt in prompts))


def prompt_record(prompt: Prompt) -> dict[str, Any]:
    """A prompt as a row."""
    return {
        "id": prompt.id,
        "messages": messages_record(prompt.messages),
        "kind": prompt.kind,
        "split": prompt.split,
        "source": prompt.source,
        "tags": list(prompt.tags),
    }


def read_prompts(path: Path) -> Iterator[Prompt]:
    """Prompts in the order in which they were written."""
    for row in read_table(path, PROMPTS):
        yield Prompt(
            row["id"], conversation(row["messages"]), row["kind"], row["split"], row["source"], tuple(row["tags"])
        )


def messages_record(messages: Conversation) -> list[dict[str, str]]:
    """A conversation as JSON."""
    return [message.as_dict() for message in messages]
