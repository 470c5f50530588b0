"""Text for terminals. Model text, plugin summaries and file contents may hold escape sequences; none gets through."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

# C0 and C1 controls, the marks that reorder or break lines, and halves of surrogate pairs. A terminal obeys the
# first; the second make a line read other than it is; the third cannot be encoded.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_UNSAFE_IN_LINE = re.compile(_UNSAFE.pattern[:-1] + "\t\n]")


def clean(text: object, *, one_line: bool = False) -> str:
    """``str(text)`` with control characters, bidirectional marks and lone surrogates written as escapes.

    Line feeds and tabs stay, unless ``one_line``.
    """
    return (_UNSAFE_IN_LINE if one_line else _UNSAFE).sub(_escape, str(text))


def columns(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns, cleaned, the last one as wide as it needs; the same on terminals and in pipes."""
    cells = [[clean(cell, one_line=True) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def prepare_streams() -> None:
    """Let a terminal with a small character set show escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return {0x09: "\\t", 0x0A: "\\n"}.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
