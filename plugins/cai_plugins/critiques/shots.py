"""The worked examples that come before a request: the constitution's own, or five that come along."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from cai_core.errors import UserError
from cai_core.types.principles import Constitution, CritiqueShot
from cai_core.types.records import conversation

FEW_SHOTS = Path(__file__).parent / "data" / "few_shots.json"


def few_shots(constitution: Constitution, count: int | None) -> tuple[CritiqueShot, ...]:
    """The first ``count``, or all there are. Raises ``UserError`` when there are fewer."""
    shots = constitution.few_shots.critiques or built_in()
    if count is not None and count > len(shots):
        raise UserError(
            f"{count} worked examples are asked for and there are {len(shots)}",
            where="critique_template.shots",
            hint=f"give `shots` a number up to {len(shots)}, or null for all",
        )
    return shots[:count]


@cache
def built_in() -> tuple[CritiqueShot, ...]:
    """In the order of the file."""
    entries = json.loads(FEW_SHOTS.read_text(encoding="utf-8"))
    return tuple(CritiqueShot(**{**entry, "prompt": conversation(entry["prompt"])}) for entry in entries)
