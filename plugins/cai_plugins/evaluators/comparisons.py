"""Labelled comparisons: a prompt, a better and a worse answer. The built-in set, or a JSON-lines file of the user's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from cai_core.errors import UserError
from cai_core.text.pairs import left_out, read_pairs
from cai_core.text.transcripts import parse_transcript, render_transcript
from cai_core.types.records import Conversation, Message

log = logging.getLogger(__name__)
BUILTIN = Path(__file__).parent / "data" / "comparisons.jsonl"


def read_comparisons(path: Path | None, limit: int | None = None) -> list[dict[str, Any]]:
    """The items of ``read_counted`` alone."""
    return read_counted(path, limit)[0]


def read_counted(path: Path | None, limit: int | None = None) -> tuple[list[dict[str, Any]], str]:
    """Objects with ``id``, ``prompt``, ``better``, ``worse`` and ``category`` (where absent: "all"); and in words what
    was left out of the file, which is also warned of.

    The forms are those of ``cai_core.text.pairs.read_pairs``: prompt, better and worse; chosen and rejected; a and b
    with p_a; or the paper's prompt, corrects and incorrects. ``prompt`` is a text, or a transcript where there are
    several turns (see ``turns_of``). ``limit``: categories take turns, and in a file of the user's the hash of the id
    decides which come first, so that a part of the file is a fair part. Pairs with an empty answer, and transcripts
    that are not one conversation, are left out: the released hh-rlhf files have a few of each. Raises ``UserError``
    with file and line for a bad line, a pair without a better answer, and a file without any comparison.
    """
    items = []
    reasons = []
    for pair in read_pairs(path or BUILTIN):
        where = f"{path or BUILTIN} line {pair.line}"
        reason = pair.failure or ("" if pair.a.strip() and pair.b.strip() else "an answer is empty")
        reasons.append(reason)
        if reason:
            continue
        if pair.p_a is None or pair.p_a == 0.5:
            hint = "give `better` and `worse`, `chosen` and `rejected`, or `p_a` other than 0.5"
            raise UserError("nothing says which answer is better", where=where, hint=hint)
        better, worse = (pair.a, pair.b) if pair.p_a > 0.5 else (pair.b, pair.a)
        plain = len(pair.prompt) == 1 and not pair.prompt[0].content.startswith("\n\nHuman:")
        prompt = pair.prompt[0].content if plain else render_transcript(pair.prompt)
        items.append({"id": pair.id, "prompt": prompt, "better": better, "worse": worse, "category": pair.category})
    said = left_out(reasons)
    if not items:
        raise UserError("the file has no comparison to ask about", where=str(path or BUILTIN), hint=said)
    if said:
        log.warning("%s: %s", (path or BUILTIN).name, said)
    if limit is not None and path is not None:
        items.sort(key=lambda item: sha256(f"limit/{item['id']}".encode()).digest())
    return _fair(items, limit), said


def turns_of(item: Mapping[str, Any]) -> Conversation:
    """The conversation of an item: its ``prompt`` is one turn of the user, or a transcript with "\\n\\nHuman:"."""
    prompt = str(item["prompt"])
    return parse_transcript(prompt) if prompt.startswith("\n\nHuman:") else (Message("user", prompt),)


def clusters_of(items: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Item id -> its conversation, as a hash: pairs of answers to one conversation are not independent."""
    return {item["id"]: sha256(str(item["prompt"]).encode("utf-8", "replace")).hexdigest()[:16] for item in items}


def better_is_b(item: str) -> bool:
    """Whether the better answer is answer B: by hash of the item's id, so about half the time."""
    return sha256(f"side/{item}".encode()).digest()[0] % 2 == 1


def _fair(items: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    if limit is None or limit >= len(items):
        return items
    queues: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        queues.setdefault(item["category"], []).append(item)
    turns = [queue[i] for i in range(len(items)) for queue in queues.values() if i < len(queue)]
    return turns[:limit]
