"""YAML that a stranger may have written, with the line of every key.

What is read: one document of the YAML 1.2 core schema, so ``1e-5`` is a number, ``no`` and ``2024-01-01`` are
text, and the result holds only dict (text keys), list, str, int, finite float, bool and None. Refused with
``file:line``: tags that build objects, keys given twice, merge keys, files above ``MAX_BYTES``, nesting above
``MAX_DEPTH``, and documents that aliases blow up to more than ``MAX_NODES`` values. Nothing here runs code or
recurses without a bound.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_core.errors import UserError

MAX_BYTES = 1_000_000
"""Our choice: the largest constitution we know is 30 kB; PyYAML reads about 1 MB in ten seconds."""

MAX_DEPTH = 60
"""Our choice: a recipe needs about 8 levels."""

MAX_NODES = 200_000
"""Our choice: more values than a file of ``MAX_BYTES`` reasonably holds, counted with aliases followed."""

YamlPath = tuple[str | int, ...]

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_TRUE = re.compile(r"(?:true|True|TRUE)\Z")
_FALSE = re.compile(r"(?:false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCT = re.compile(r"0o[0-7]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"


class Lines:
    """Where each value of a document stands."""

    def __init__(self, source: str, lines: dict[YamlPath, int]) -> None:
        self.source = source
        self._lines = lines

    def line(self, path: Iterable[str | int]) -> int | None:
        """Line (from 1) of the key or list item at ``path``; None where the document has no such path."""
        return self._lines.get(tuple(path))

    def where(self, path: Iterable[str | int]) -> str:
        """``source:line`` of the path, or of the nearest parent that the document has."""
        path = tuple(path)
        while path and path not in self._lines:
            path = path[:-1]
        line = self._lines.get(path)
        return self.source if line is None else f"{self.source}:{line}"


@dataclass(slots=True)
class _Node:
    line: int
    scalar: Any = None
    items: list[_Node] | None = None
    pairs: dict[str, tuple[int, _Node]] | None = None


def load_yaml(text: str, source: str) -> tuple[Any, Lines]:
    """The document as plain data, and the line of every key path. An empty document is None.

    ``source`` is what errors call the document (a file name). Raises ``UserError`` for anything that is not
    one clean document.
    """
    import yaml

    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _too_large(source)
    try:
        root = _Builder(iter(yaml.parse(text, Loader=yaml.SafeLoader)), source).document()
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, source) from None
    lines: dict[YamlPath, int] = {(): 1}
    if root is None:
        return None, Lines(source, lines)
    return _Expander(source, lines).expand(root, ()), Lines(source, lines)


def read_yaml(path: Path, source: str = "") -> tuple[Any, Lines]:
    """``load_yaml`` of a UTF-8 file; ``UserError`` where it cannot be read."""
    source = source or str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=source) from None
    if len(raw) > MAX_BYTES:
        raise _too_large(source)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError("not UTF-8 text", where=f"{source}:{line}", hint="Save the file as UTF-8.") from None
    return load_yaml(text, source)


def near_name(word: str, known: Iterable[str]) -> str:
    """``Did you mean 'x'?`` for the nearest of ``known``, or an empty string."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"Did you mean '{by_lower[found[0]]}'?" if found else ""


def _too_large(source: str) -> UserError:
    return UserError(f"larger than {MAX_BYTES:,} bytes", where=source, hint="Split it.")


def _syntax_error(error: Exception, text: str, source: str) -> UserError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line if mark is not None else text.count("\n", 0, getattr(error, "position", 0) or 0)
    where = f"{source}:{line + 1}"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    context = getattr(error, "context", None)
    message = f"not valid YAML: {problem}" + (f" {context}" if context else "")
    hint = "Indent with spaces; YAML allows no tabs there." if "'\\t'" in message else ""
    return UserError(message, where=where, hint=hint)


class _Builder:
    """Parser events -> nodes. PyYAML's parser is a state machine: only this recurses, up to MAX_DEPTH."""

    def __init__(self, events: Iterator[Any], source: str) -> None:
        self.events = events
        self.source = source
        self.anchors: dict[str, _Node | None] = {}

    def fail(self, message: str, line: int, hint: str = "") -> UserError:
        return UserError(message, where=f"{self.source}:{line}", hint=hint)

    def document(self) -> _Node | None:
        import yaml

        root: _Node | None = None
        seen = False
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    line = event.start_mark.line + 1 if event.start_mark else 1
                    raise self.fail("a second document starts here", line, "Keep one, drop '---'.")
                seen = True
                root = self.node(next(self.events), 1)
        return root

    def node(self, event: Any, depth: int) -> _Node:
        import yaml

        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise self.fail(f"nested deeper than {MAX_DEPTH} levels", line)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise self.fail(f"alias '*{event.anchor}' names no anchor above it", line)
            target = self.anchors[event.anchor]
            if target is None:
                raise self.fail(f"anchor '&{event.anchor}' contains itself", line)
            return target
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        node = _Node(line)
        if isinstance(event, yaml.ScalarEvent):
            node.scalar = self.scalar(event, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            self.check_tag(event.tag, "seq", line)
            node.items = []
            while not isinstance(child := next(self.events), yaml.SequenceEndEvent):
                node.items.append(self.node(child, depth + 1))
        else:
            self.check_tag(event.tag, "map", line)
            node.pairs = {}
            while not isinstance(key_event := next(self.events), yaml.MappingEndEvent):
                key_line = key_event.start_mark.line + 1
                key = self.key(self.node(key_event, depth + 1), key_line)
                value = self.node(next(self.events), depth + 1)
                if key in node.pairs:
                    twice = f"key '{key}' is given twice (first on line {node.pairs[key][0]})"
                    raise self.fail(twice, key_line, "Keep one of them.")
                node.pairs[key] = (key_line, value)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def key(self, node: _Node, line: int) -> str:
        if node.items is not None or node.pairs is not None or not isinstance(node.scalar, str):
            raise self.fail("a key that is not text", line, "Put the key in quotes.")
        if node.scalar == "<<":
            raise self.fail("merge keys ('<<') are not supported", line, "Write the keys out.")
        return node.scalar

    def check_tag(self, tag: str | None, kind: str, line: int) -> None:
        if tag not in (None, "!", _TAG + kind):
            shown = str(tag).replace(_TAG, "!!")
            raise self.fail(f"tag '{shown}' is not allowed", line, "Write plain values.")

    def scalar(self, event: Any, line: int) -> Any:
        text: str = event.value
        if _SURROGATE.search(text):
            raise self.fail("half of a surrogate pair", line, "Write the character itself, not its escapes.")
        if event.tag in ("!", _TAG + "str"):
            return text
        if event.tag is None:
            if not event.implicit[0]:
                return text
            return self.plain(text, line)
        for kind, types in (("int", int), ("float", (int, float)), ("bool", bool), ("null", type(None))):
            if event.tag == _TAG + kind:
                value = self.plain(text, line)
                if not isinstance(value, types) or (kind == "int" and isinstance(value, bool)):
                    raise self.fail(f"'{text[:40]}' is not of type {kind}", line)
                return value
        self.check_tag(event.tag, "str", line)
        return text

    def plain(self, text: str, line: int) -> Any:
        if _NULL.match(text):
            return None
        if _TRUE.match(text):
            return True
        if _FALSE.match(text):
            return False
        try:
            if _INT.match(text):
                return int(text)
            if len(text) < 40 and (_OCT.match(text) or _HEX.match(text)):
                return int(text, 0)
        except ValueError:
            raise self.fail("a number with too many digits", line, "Quote it if it is text.") from None
        if _FLOAT.match(text):
            value = float(text)
            if math.isfinite(value):
                return value
        if _FLOAT.match(text) or _NOT_FINITE.match(text):
            raise self.fail(f"'{text[:40]}' is not a finite number", line, "Quote it if it is text.")
        return text


class _Expander:
    """Nodes -> plain data, every alias a copy of its own, with a bound on the total."""

    def __init__(self, source: str, lines: dict[YamlPath, int]) -> None:
        self.source = source
        self.lines = lines
        self.count = 0

    def expand(self, node: _Node, path: YamlPath) -> Any:
        self.count += 1
        if self.count > MAX_NODES:
            raise UserError(
                f"holds more than {MAX_NODES:,} values (aliases followed)",
                where=f"{self.source}:{node.line}",
                hint="Split the file, or write values out instead of aliases of aliases.",
            )
        if len(path) > MAX_DEPTH:
            raise UserError(f"nested deeper than {MAX_DEPTH} levels", where=f"{self.source}:{node.line}")
        if node.items is not None:
            for index, item in enumerate(node.items):
                self.lines[(*path, index)] = item.line
            return [self.expand(item, (*path, index)) for index, item in enumerate(node.items)]
        if node.pairs is not None:
            for key, (line, _) in node.pairs.items():
                self.lines[(*path, key)] = line
            return {key: self.expand(value, (*path, key)) for key, (_, value) in node.pairs.items()}
        return node.scalar
