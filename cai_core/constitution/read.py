"""Constitutions: found by name or path, checked with line numbers, named by a digest of what models read.

The format (YAML)::

    schema: 1
    id: my-firm
    version: "1.0.0"
    title: What our assistant stands for
    licence: CC-BY-4.0
    source: where the texts come from
    principles:
      - id: no-promises
        critique: What to look for in the last response.
        revision: How to rewrite it.
        comparison: Which of two responses to choose.
        weight: 1.0
        tags: [business]
    few_shots:            # optional: worked examples, instead of the built-in ones
      critiques:
        - prompt: [{role: user, content: "..."}]
          response: "..."
          critique_request: "..."
          critique: "..."
          revision_request: "..."
          revision: "..."
      comparisons:
        - prompt: [{role: user, content: "..."}]
          better: "..."
          worse: "..."
      reasoning: ["raw text of one example each; {} is where the principle goes"]
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cai_core.errors import UserError, UserErrors
from cai_core.types.principles import ComparisonShot, Constitution, CritiqueShot, FewShots, Principle
from cai_core.types.records import Conversation, conversation
from cai_core.yamlio import Lines, near_name, read_yaml

SCHEMA_VERSION = 1
MAX_TEXT = 10_000
"""Longest text of a principle, in characters: our choice; it must fit a prompt beside the conversation."""

_KEYS = ("schema", "id", "version", "title", "licence", "source", "principles", "few_shots")
_PRINCIPLE_KEYS = ("id", "critique", "revision", "comparison", "weight", "tags")
_SHOTS = {
    "critiques": ("prompt", "response", "critique_request", "critique", "revision_request", "revision"),
    "comparisons": ("prompt", "better", "worse"),
}
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def load_constitution(name_or_path: str, base: Path | None = None) -> Constitution:
    """A built-in constitution by its name ("harmless"), or a YAML file, relative to ``base`` (default: here).

    What ends on .yaml or .yml or holds a slash is a path, all else a name. Raises ``UserErrors`` with every problem,
    each with file and line. The digest does not depend on layout, comments or defaults written out.
    """
    built_in = _built_in()
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml") or "/" in name_or_path or "\\" in name_or_path:
        path = (base or Path()) / path
        if not path.is_file():
            raise UserError(f"no constitution at '{path}'", hint=f"Built in: {', '.join(built_in)}.")
        return _Reader(path).read()
    if name_or_path in built_in:
        return _Reader(built_in[name_or_path]).read()
    hint = f"{near_name(name_or_path, built_in)} Built in: {', '.join(built_in)}; or give the path of a YAML file."
    raise UserError(f"unknown constitution '{name_or_path}'", hint=hint.strip())


def list_constitutions() -> tuple[Constitution, ...]:
    """The constitutions shipped with cai-core, by id."""
    return tuple(_Reader(path).read() for path in _built_in().values())


def constitution_digest(constitution: Constitution) -> str:
    """sha256 of the canonical JSON of id, version, principles and few-shots: all that can reach a model or a result.

    Title, licence and source are for people and left out; the order of principles counts.
    """
    content: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "id": constitution.id,
        "version": constitution.version,
        "principles": [
            {
                "id": principle.id,
                "critique": principle.critique,
                "revision": principle.revision,
                "comparison": principle.comparison,
                "weight": principle.weight,
                "tags": list(principle.tags),
            }
            for principle in constitution.principles
        ],
    }
    if constitution.few_shots != FewShots():
        content["few_shots"] = asdict(constitution.few_shots)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def constitution_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the format, for editors. That ids are unique, and that a principle says something, is
    checked on reading."""
    text = {"type": "string", "maxLength": MAX_TEXT}
    name = {"type": "string", "pattern": "^" + _ID.pattern.replace("\\Z", "$")}
    turn = {
        "type": "object",
        "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": text},
        "required": ["role", "content"],
        "additionalProperties": False,
    }
    described = {
        "critique": "what to look for in the last response",
        "revision": "how to rewrite the response",
        "comparison": "which of two responses to choose",
    }
    principle = {
        "type": "object",
        "properties": {
            "id": {**name, "description": "unique in this file; reports show it"},
            **{key: {**text, "description": say} for key, say in described.items()},
            "weight": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6, "default": 1.0},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["id"],
        "additionalProperties": False,
    }
    shots = {
        kind: {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {key: {"type": "array", "items": turn} if key == "prompt" else text for key in keys},
                "required": list(keys),
                "additionalProperties": False,
            },
        }
        for kind, keys in _SHOTS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "cai-core constitution",
        "type": "object",
        "properties": {
            "schema": {"const": SCHEMA_VERSION},
            "id": name,
            "version": {"type": "string", "minLength": 1, "description": "raise it whenever a text changes"},
            "title": {"type": "string", "minLength": 1},
            "licence": {"type": "string"},
            "source": {"type": "string", "description": "where the texts come from"},
            "principles": {"type": "array", "minItems": 1, "items": principle},
            "few_shots": {
                "type": "object",
                "properties": {**shots, "reasoning": {"type": "array", "items": text}},
                "additionalProperties": False,
            },
        },
        "required": ["schema", "id", "version", "title", "principles"],
        "additionalProperties": False,
    }


def _built_in() -> dict[str, Path]:
    package = Path(__file__).resolve().parent.parent
    folder = package / "_constitutions"
    if not folder.is_dir() and (package.parent / "pyproject.toml").is_file():
        # A source checkout or an editable install: the wheel alone holds the copy inside the package.
        folder = package.parent / "constitutions"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[UserError] = []
        self.lines = Lines(str(path), {})

    def read(self) -> Constitution:
        data, self.lines = read_yaml(self.path)
        if not isinstance(data, dict):
            raise UserError("a constitution is a mapping with the keys " + ", ".join(_KEYS), where=str(self.path))
        self.unknown_keys(data, _KEYS, ())
        schema = data.get("schema")
        if schema is None:
            self.problem(("schema",), "'schema' is missing", f"Write 'schema: {SCHEMA_VERSION}'.")
        elif type(schema) is not int or schema != SCHEMA_VERSION:
            self.problem(("schema",), f"schema {schema!r} is not known", f"This cai-core reads {SCHEMA_VERSION}.")
        constitution = Constitution(
            id=self.identifier(data, ()),
            version=self.text(data, (), "version", required=True),
            title=self.text(data, (), "title", required=True),
            licence=self.text(data, (), "licence"),
            source=self.text(data, (), "source"),
            principles=self.principles(data.get("principles")),
            few_shots=self.few_shots(data.get("few_shots")),
        )
        if self.problems:
            raise UserErrors(self.problems)
        return replace(constitution, digest=constitution_digest(constitution))

    def problem(self, path: tuple[str | int, ...], message: str, hint: str = "") -> None:
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        where = ": ".join(part for part in (self.lines.where(path), dotted) if part)
        self.problems.append(UserError(message, where=where, hint=hint))

    def unknown_keys(self, data: dict[str, Any], known: tuple[str, ...], path: tuple[str | int, ...]) -> None:
        for key in data:
            if key not in known:
                hint = near_name(key, known) or f"Keys: {', '.join(known)}."
                self.problem((*path, key), f"unknown key '{key}'", hint)

    def text(self, data: dict[str, Any], path: tuple[str | int, ...], key: str, *, required: bool = False) -> str:
        value = data.get(key)
        if value is None and not required:
            return ""
        if isinstance(value, str) and (value.strip() or not required):
            if len(value) > MAX_TEXT:
                self.problem((*path, key), f"{len(value):,} characters; at most {MAX_TEXT:,} are read")
            self.controls((*path, key), value)
            return value.strip()
        if value is None or isinstance(value, str):
            self.problem((*path, key), f"'{key}' is missing")
        else:
            self.problem((*path, key), f"'{key}' is not text", "Put it in quotes.")
        return ""

    def controls(self, path: tuple[str | int, ...], text: str) -> None:
        if found := _CONTROL.search(text):
            self.problem(path, f"holds the control character {found.group()!r}")

    def identifier(self, data: dict[str, Any], path: tuple[str | int, ...]) -> str:
        before = len(self.problems)
        text = self.text(data, path, "id", required=True)
        if len(self.problems) == before and not _ID.match(text):
            hint = "Use lower case letters, digits, '-', '_' and '.'; at most 64."
            self.problem((*path, "id"), f"bad id '{text[:80]}'", hint)
        return text

    def few_shots(self, data: Any) -> FewShots:
        if data is None:
            return FewShots()
        if not isinstance(data, dict):
            self.problem(("few_shots",), "'few_shots' is not a mapping", "Keys: critiques, comparisons, reasoning.")
            return FewShots()
        self.unknown_keys(data, (*_SHOTS, "reasoning"), ("few_shots",))
        critiques = [CritiqueShot(**shot) for shot in self.shots(data, "critiques")]
        comparisons = [ComparisonShot(**shot) for shot in self.shots(data, "comparisons")]
        reasoning = data.get("reasoning") or []
        if not isinstance(reasoning, list) or not all(isinstance(text, str) for text in reasoning):
            self.problem(("few_shots", "reasoning"), "'reasoning' is not a list of texts")
            reasoning = []
        for index, text in enumerate(reasoning):
            at = ("few_shots", "reasoning", index)
            if text.count("{}") != 1:
                self.problem(at, "an example needs {} exactly once", "It is where the principle goes.")
            self.controls(at, text)
        return FewShots(tuple(critiques), tuple(comparisons), tuple(reasoning))

    def shots(self, data: dict[str, Any], kind: str) -> list[dict[str, Any]]:
        """Examples keep their texts as they are: white space is part of what a model copies."""
        items, keys = data.get(kind) or [], _SHOTS[kind]
        if not isinstance(items, list):
            self.problem(("few_shots", kind), f"'{kind}' is not a list")
            return []
        found = []
        for index, item in enumerate(items):
            path = ("few_shots", kind, index)
            if not isinstance(item, dict):
                self.problem(path, "an example is a mapping with the keys " + ", ".join(keys))
                continue
            self.unknown_keys(item, keys, path)
            shot: dict[str, Any] = {}
            for key in keys:
                if key == "prompt":
                    shot[key] = self.turns(item.get(key), (*path, key))
                elif isinstance(item.get(key), str) and item[key].strip() and len(item[key]) <= MAX_TEXT:
                    shot[key] = item[key]
                    self.controls((*path, key), item[key])
                else:
                    self.problem((*path, key), f"'{key}' is not a text of 1 to {MAX_TEXT:,} characters")
            if len(shot) == len(keys):
                found.append(shot)
        return found

    def turns(self, value: Any, path: tuple[str | int, ...]) -> Conversation:
        try:
            messages = conversation(value)
        except (TypeError, KeyError, ValueError):
            messages = ()
        if not messages or messages[-1].role != "user" or not all(turn.content.strip() for turn in messages):
            self.problem(path, "a prompt is a list of turns {role, content}, none empty, the last one the user's")
        for turn in messages:
            self.controls(path, turn.content)
        return messages

    def principles(self, items: Any) -> tuple[Principle, ...]:
        if items is None or items == []:
            self.problem(("principles",), "there are no principles", "Write at least one.")
            return ()
        if not isinstance(items, list):
            self.problem(("principles",), "'principles' is not a list", "Start each principle with '- id: ...'.")
            return ()
        found: list[Principle] = []
        first: dict[str, int] = {}
        for index, item in enumerate(items):
            path = ("principles", index)
            if not isinstance(item, dict):
                self.problem(path, "a principle is a mapping with the keys " + ", ".join(_PRINCIPLE_KEYS))
                continue
            principle = self.principle(item, path)
            if principle.id and first.setdefault(principle.id, index) != index:
                line = self.lines.line(("principles", first[principle.id]))
                message = f"the id '{principle.id}' is given twice (first on line {line})"
                self.problem((*path, "id"), message, "Every principle needs an id of its own.")
            found.append(principle)
        return tuple(found)

    def principle(self, item: dict[str, Any], path: tuple[str | int, ...]) -> Principle:
        self.unknown_keys(item, _PRINCIPLE_KEYS, path)
        identifier = self.identifier(item, path)
        before = len(self.problems)
        critique, revision, comparison = (self.text(item, path, key) for key in ("critique", "revision", "comparison"))
        if not (critique or revision or comparison) and len(self.problems) == before:
            self.problem(path, "a principle without critique, revision and comparison", "Write at least one of them.")
        weight = item.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1e6:
            self.problem((*path, "weight"), f"weight {weight!r} is not a number above 0 and at most 1e6")
            weight = 1.0
        tags = item.get("tags")
        tags = [] if tags is None else tags
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            self.problem((*path, "tags"), "'tags' is not a list of words", "Write 'tags: [one, two]'.")
            tags = []
        return Principle(identifier, critique, revision, comparison, float(weight), tuple(tags))
