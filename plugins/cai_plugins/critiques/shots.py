"""The worked examples that come before a request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FEW_SHOTS = Path(__file__).parent / "data" / "few_shots.json"


@dataclass(frozen=True, slots=True)
class Shot:
    """One round, from the question to the revision."""

    prompt: str
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str


@cache
def few_shots() -> tuple[Shot, ...]:
    """In the order of the file."""
    return tuple(Shot(**entry) for entry in json.loads(FEW_SHOTS.read_text(encoding="utf-8")))
