"""The prompts that come along: short, mild, in English, written for this project."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from cai_core.errors import UserError
from cai_core.types.prompts import Prompt, PromptKind, Split
from cai_core.types.records import Message
from cai_plugins.prompts.plugin import BuiltinOptions

DATA = Path(__file__).parent / "data"


class BuiltinPrompts:
    """A subset in the order of the prompts' hashes: with a larger count, the earlier prompts stay."""

    def __init__(self, options: BuiltinOptions) -> None:
        self.options = options

    def load(self) -> Sequence[Prompt]:
        """See ``PromptSource``. Raises ``UserError`` when more are asked for than there are, or none at all."""
        prompts = [*_read("red_team.jsonl", "red_team"), *_read("helpful.jsonl", "helpful")]
        wanted: list[tuple[str, PromptKind, Split]] = [
            ("red_team", "red_team", "train"),
            ("helpful", "helpful", "train"),
            ("heldout_red_team", "red_team", "heldout"),
            ("heldout_helpful", "helpful", "heldout"),
            ("heldout_borderline", "borderline", "heldout"),
        ]
        chosen: list[Prompt] = []
        for option, kind, split in wanted:
            count = getattr(self.options, option)
            group = sorted((p for p in prompts if p.kind == kind and p.split == split), key=_hash)
            if count > len(group):
                raise UserError(
                    f"there are {len(group)} built-in prompts of this kind, not {count}",
                    where=f"prompts.builtin.{option}",
                    hint="lower the number, or bring your own prompts with `prompts: {name: jsonl, path: ...}`",
                )
            chosen += group[:count]
        if not chosen:
            raise UserError("all counts are 0, so there is no prompt", where="prompts.builtin")
        return chosen


def _read(name: str, kind: PromptKind) -> list[Prompt]:
    prompts = []
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        # Only held-out prompts are of kind borderline (see ``Prompt``): in training such a prompt is a helpful one,
        # since what it teaches is to answer.
        borderline = "borderline" in row["tags"] and row["split"] == "heldout"
        prompts.append(
            Prompt(
                id=row["id"],
                messages=(Message("user", row["text"]),),
                kind="borderline" if borderline else kind,
                split=row["split"],
                source="builtin",
                tags=tuple(row["tags"]),
            )
        )
    return prompts


def _hash(prompt: Prompt) -> bytes:
    return hashlib.sha256(prompt.id.encode()).digest()
