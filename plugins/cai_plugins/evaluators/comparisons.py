"""Labelled comparisons: a prompt, a better and a worse answer. The built-in set, or a JSON-lines file of the user's."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from cai_core.errors import UserError

BUILTIN = Path(__file__).parent / "data" / "comparisons.jsonl"
TEXTS = ("id", "prompt", "better", "worse")


def read_comparisons(path: Path | None, limit: int | None = None) -> list[dict[str, Any]]:
    """Objects with ``id``, ``prompt``, ``better``, ``worse`` and ``category`` (where absent: "all").

    Categories take turns until ``limit`` is reached, so that a part of the file is a fair part. Raises ``UserError``
    with file and line for a bad line, a repeated id, or a file without any comparison.
    """
    source = path or BUILTIN
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the comparisons: {error.strerror}", where=str(source)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the comparisons are not UTF-8 (byte {error.start})", where=str(source)) from error
    items: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = _item(line, f"{source.name}:{number}")
        if item["id"] in seen:
            raise UserError(f"the id {item['id']!r} is there twice", where=f"{source.name}:{number}")
        seen.add(item["id"])
        items.append(item)
    if not items:
        hint = f"one JSON object a line with {', '.join(TEXTS)}"
        raise UserError("no comparison in the file", where=str(source), hint=hint)
    return _fair(items, limit)


def better_is_b(item: str) -> bool:
    """Whether the better answer is answer B: by hash of the item's id, so about half the time."""
    return sha256(f"side/{item}".encode()).digest()[0] % 2 == 1


def _item(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=where) from error
    if not isinstance(row, dict):
        raise UserError("a line must be a JSON object", where=where)
    missing = [key for key in TEXTS if not isinstance(row.get(key), str) or not row[key].strip()]
    if missing:
        raise UserError(f"{', '.join(missing)} must be text", where=where)
    return {**{key: row[key] for key in TEXTS}, "category": str(row.get("category", "all"))}


def _fair(items: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    if limit is None or limit >= len(items):
        return items
    queues: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        queues.setdefault(item["category"], []).append(item)
    turns = [queue[i] for i in range(len(items)) for queue in queues.values() if i < len(queue)]
    return turns[:limit]
