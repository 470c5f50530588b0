"""Prompts out of transcripts in the form of hh-rlhf (Bai et al. 2022a): the conversation up to a human turn.

"Each conversation consists of multiple prompts, one per human turn" (section 3.2 of the paper): ``turns: every``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cai_core.errors import UserError
from cai_core.text.duplicates import NearDuplicates
from cai_core.text.transcripts import parse_transcript, plain_text
from cai_core.types.prompts import Prompt
from cai_core.types.records import Conversation
from cai_plugins.prompts.common import content_id, split_of
from cai_plugins.prompts.plugin import HHRLHFOptions


class HHRLHFPrompts:
    """Conversations in the order of the files, cut before an answer. Near-duplicates of earlier conversations are left
    out; the cuts of one conversation ask for different things, however much of their text they share. All
    conversations that open alike are in the same split. ``notes`` says what was left out."""

    def __init__(self, options: HHRLHFOptions) -> None:
        self.options = options
        self.notes: list[str] = []

    def load(self) -> Sequence[Prompt]:
        """See ``PromptSource``. Raises ``UserError`` with file and line on what is no transcript."""
        self.notes = []
        openings, seen = NearDuplicates(), NearDuplicates()
        prompts: list[Prompt] = []
        duplicates = odd = 0
        for path, number, transcript in self._transcripts():
            try:
                messages = parse_transcript(transcript)
            except ValueError as error:
                raise UserError(
                    f"not a transcript: {error}", where=f"{path}:{number}", hint="it begins with '\\n\\nHuman:'"
                ) from error
            if not _alternates(messages):
                odd += 1
                continue
            opening = messages[0].content
            near = openings.add_new(opening, opening)
            group = near[0] if near else opening
            cuts = _cuts(messages, self.options.turns)
            new = [cut for cut in cuts if not seen.find(plain_text(cut))]
            duplicates += len(cuts) - len(new)
            split = split_of(group, self.options.heldout_share)
            for cut in new:
                identifier = content_id(cut)
                seen.add(identifier, plain_text(cut))
                prompts.append(Prompt(identifier, cut, self.options.kind, split, f"{path.name}:{number}"))
            if self.options.limit and len(prompts) >= self.options.limit:
                del prompts[self.options.limit :]
                break
        openings.close()
        seen.close()
        if not prompts:
            raise UserError("there is no prompt", where=str(self.options.path), hint="it holds no transcripts")
        if duplicates:
            self.notes.append(f"{duplicates} near-duplicates of earlier conversations left out")
        if odd:
            self.notes.append(f"{odd} transcripts left out: an empty turn, or two turns of the same speaker in a row")
        return prompts

    def _transcripts(self) -> Iterator[tuple[Path, int, str]]:
        for path in self._files():
            try:
                with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(
                    encoding="utf-8"
                ) as file:
                    for number, line in enumerate(file, start=1):
                        if line.strip():
                            yield path, number, _transcript(line, f"{path}:{number}", self.options.column)
            except (OSError, EOFError, UnicodeDecodeError) as error:
                raise UserError(f"the file cannot be read: {error}", where=str(path)) from error

    def _files(self) -> list[Path]:
        path = self.options.path
        if path.is_file():
            return [path]
        found = sorted(p for p in path.rglob("*") if p.name.endswith((".jsonl", ".jsonl.gz")) and p.is_file())
        if not found:
            hint = "give a folder of hh-rlhf, such as harmless-base, or one of its files"
            raise UserError("no *.jsonl or *.jsonl.gz in this folder", where=str(path), hint=hint)
        return found


def _transcript(line: str, where: str, column: str) -> str:
    try:
        row: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError("this is not JSON", where=where, hint="one object a line") from error
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        known = ", ".join(row) if isinstance(row, dict) else "none"
        raise UserError(f"there is no text in {column!r}", where=where, hint=f"columns: {known}; set `column`")
    return str(row[column])


def _alternates(messages: Conversation) -> bool:
    roles = [message.role for message in messages]
    whole = all(message.content.strip() for message in messages[:-1])
    return whole and roles == ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))]


def _cuts(messages: Conversation, turns: str) -> list[Conversation]:
    ends = [i for i, message in enumerate(messages) if message.role == "user" and message.content.strip()]
    return [messages[: end + 1] for end in (ends if turns == "every" else ends[-1:])]
