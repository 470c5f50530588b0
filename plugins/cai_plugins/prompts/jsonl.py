"""Prompts from a JSON lines file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast, get_args

from cai_core.errors import UserError, UserErrors
from cai_core.types.prompts import Prompt, PromptKind, Split
from cai_core.types.records import Conversation, Message, conversation
from cai_plugins.prompts.common import content_id, split_of
from cai_plugins.prompts.plugin import JsonlOptions

# Our choice: no prompt is that long, but a file without line breaks is, and reading it whole may not fit in memory.
MAX_LINE_BYTES = 1_000_000
KEYS = frozenset(("prompt", "messages", "id", "kind", "split", "tags"))
# Our choice: enough to see what is wrong with a file, without a page per line.
MAX_PROBLEMS = 20


class JsonlPrompts:
    """One prompt a line. Without an ``id``, a row's id is the hash of its conversation, so that other lines may come
    and go without changing it; without a ``split``, the hash decides that too."""

    def __init__(self, options: JsonlOptions) -> None:
        self.options = options

    def load(self) -> Sequence[Prompt]:
        """See ``PromptSource``. All bad lines (up to 20) are reported together, as ``file:line``."""
        prompts: list[Prompt] = []
        problems: list[UserError] = []
        lines: dict[str, int] = {}
        for number, line in self._lines():
            try:
                prompt = self._prompt(line, number)
                if prompt.id in lines:
                    same = f"line {lines[prompt.id]} has the same id {prompt.id!r}"
                    raise ValueError(f"{same}; ids must be unique, and a row without one must not be there twice")
            except ValueError as error:
                problems.append(UserError(str(error), where=f"{self.options.path}:{number}"))
                if len(problems) >= MAX_PROBLEMS:
                    break
            else:
                lines[prompt.id] = number
                prompts.append(prompt)
        if problems:
            raise problems[0] if len(problems) == 1 else UserErrors(problems)
        if not prompts:
            raise UserError(
                "there is no prompt in this file", where=str(self.options.path), hint='a line is {"prompt": "..."}'
            )
        return prompts

    def _lines(self) -> Iterator[tuple[int, str]]:
        path = self.options.path
        try:
            with path.open("rb") as file:
                number = 0
                while raw := file.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    where = f"{path}:{number}"
                    if len(raw) > MAX_LINE_BYTES:
                        raise UserError(
                            f"the line is longer than {MAX_LINE_BYTES:,} bytes", where=where, hint="one object a line"
                        )
                    try:
                        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                    except UnicodeDecodeError as error:
                        raise UserError(
                            f"the line is not UTF-8 (byte {error.start + 1})", where=where, hint="save it as UTF-8"
                        ) from error
                    if text.strip():
                        yield number, text
        except OSError as error:
            raise UserError(f"the file cannot be read: {error.strerror}", where=str(path)) from error

    def _prompt(self, line: str, number: int) -> Prompt:
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise ValueError(f"this is not a JSON object{at}") from error
        if not isinstance(row, dict):
            raise ValueError(f"this is a {type(row).__name__}, not a JSON object")
        if unknown := sorted(set(row) - KEYS):
            raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(KEYS))}")
        messages = _messages(row)
        identifier = row.get("id", content_id(messages))
        if isinstance(identifier, int) and not isinstance(identifier, bool):
            identifier = str(identifier)
        if not isinstance(identifier, str) or not identifier:
            raise ValueError("`id` must be a text that is not empty")
        _checked(Message("user", identifier))
        tags = row.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise ValueError("`tags` must be a list of texts")
        kind = _one_of(row, "kind", get_args(PromptKind), self.options.kind)
        split = _one_of(row, "split", get_args(Split), "")
        if kind == "borderline":
            if split == "train":
                raise ValueError("borderline prompts are held out; `split` cannot be train")
            split = "heldout"
        if not split:
            split = split_of(identifier, self.options.heldout_share)
        return Prompt(
            id=identifier,
            messages=messages,
            kind=cast(PromptKind, kind),
            split=cast(Split, split),
            source=f"{self.options.path.name}:{number}",
            tags=tuple(tags),
        )


def _messages(row: dict[str, Any]) -> Conversation:
    if ("prompt" in row) == ("messages" in row):
        raise ValueError("give either `prompt` (text) or `messages` (a list of turns)")
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise ValueError("`prompt` must be a text that is not empty")
        return (_checked(Message("user", row["prompt"])),)
    turns = row["messages"]
    if not isinstance(turns, list) or not turns:
        raise ValueError("`messages` must be a list of turns that is not empty")
    for turn in turns:
        if not isinstance(turn, dict) or set(turn) != {"role", "content"} or not isinstance(turn["content"], str):
            raise ValueError('each turn must be {"role": ..., "content": text}')
        if not turn["content"].strip():
            raise ValueError("a turn is empty")
    messages = conversation(turns)
    if messages[-1].role != "user":
        raise ValueError("the last turn must be the user's")
    return tuple(_checked(message) for message in messages)


def _checked(message: Message) -> Message:
    try:
        message.content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("the text holds a lone surrogate (half of a \\u pair)") from error
    return message


def _one_of(row: dict[str, Any], key: str, allowed: Sequence[str], default: str) -> str:
    value = row.get(key, default)
    if key in row and value not in allowed:
        raise ValueError(f"`{key}` is {value!r}; it must be one of {', '.join(allowed)}")
    return str(value)
