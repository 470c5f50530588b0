"""``csv``: metrics, comparisons and units as tables that a spreadsheet opens without running anything.

What a spreadsheet would read as a formula gets an apostrophe in front, as OWASP advises (CSV injection). That is so
inside a text too, after a semicolon, a tab or a line break: a spreadsheet whose language separates cells by semicolons
does not heed the quotes of ours, and begins a cell there. JSON and Parquet hold the texts as they are.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_plugins.reporters.words import plain

# What begins a formula in some spreadsheet, after white space too; the full-width forms are read as the plain ones. The
# group: what ends a cell for some spreadsheet.
_FORMULA = re.compile(r"(\A|[;\t\r\n])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20|%])|\A(?=[\t\r\n])")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")
LONGEST = 32_000  # characters; a spreadsheet cuts a cell at 32,767 and shifts what follows


class CsvReporter:
    """A ``Reporter`` that writes ``tables/*.csv`` (RFC 4180, UTF-8 with a byte order mark, so that Excel knows)."""

    def write(self, results: Mapping[str, Any], out: Path) -> Sequence[Path]:
        """Write one file per table that has rows."""
        folder = out / "tables"
        folder.mkdir(exist_ok=True)
        written = []
        for name, (columns, rows) in _tables(results).items():
            path = folder / f"{name}.csv"
            with path.open("w", encoding="utf-8-sig", newline="") as file:
                writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
                writer.writerow(columns)
                writer.writerows([cell(found) for found in row] for row in rows)
            written.append(path)
        return written


def cell(found: object) -> str:
    """One cell: a number as it is, and text that no spreadsheet takes for a formula."""
    if found is None:
        return ""
    if isinstance(found, bool):
        return "yes" if found else "no"
    text = plain(found if isinstance(found, str) else str(found))
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} [{len(text) - LONGEST} characters more in report.json]"
    if isinstance(found, (int, float)) or _NUMBER.fullmatch(text):
        return text
    return _FORMULA.sub(r"\g<1>'", text)


def _tables(results: Mapping[str, Any]) -> dict[str, tuple[Sequence[str], Iterable[Sequence[object]]]]:
    compared = ("metric", "a", "b", "difference", "low", "high", "n", "p", "p_holm", "test", "conclusive")
    chains = (
        "prompt_id",
        "prompt",
        "round",
        "principle",
        "before",
        "critique",
        "revision",
        "revision_cut_at",
        "failure",
    )
    pairs = ("id", "prompt", "a", "b", "a_cut_at", "b_cut_at", "p_a", "principles", "failure")
    return {
        "metrics": (
            ("metric", "label", "model", "value", "low", "high", "n", "failed", "interval", "unit", "direction"),
            list(_metrics(results)),
        ),
        "comparisons": (compared, [[row[key] for key in compared] for row in results["comparisons"]]),
        "chains": (chains, _chains(results)),
        "pairs": (pairs, _pairs(results)),
        "answers": (("prompt_id", "kind", "prompt", "model", "answer", "cut_at"), _answers(results)),
    }


def _metrics(results: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    for metric in results["metrics"]:
        for model, found in metric["values"].items():
            numbers = [found[key] for key in ("value", "low", "high", "n", "failed", "interval")]
            yield [metric["id"], metric["label"], model, *numbers, metric["unit"], metric["direction"]]


def _chains(results: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    for chain in results["chains"]:
        prompt, before = _turns(chain["prompt"]), chain["answer"]
        if not chain["rounds"]:
            yield [chain["prompt_id"], prompt, 0, "", before, None, None, None, _why(chain)]
        for number, draft in enumerate(chain["rounds"], start=1):
            texts = [draft["principle_id"], before, draft["critique"], draft["revision"], draft.get("revision_cut_at")]
            yield [chain["prompt_id"], prompt, number, *texts, _why(draft)]
            before = before if draft["revision"] is None else draft["revision"]


def _pairs(results: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    for pair in results["pairs"]:
        cut_at = pair.get("cut_at") or {}
        texts = [pair["id"], _turns(pair["prompt"]), pair["a"], pair["b"], cut_at.get("a"), cut_at.get("b")]
        yield [*texts, pair["p_a"], ", ".join(map(str, pair["principles"])), _why(pair)]


def _answers(results: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    for sample in results["samples"]:
        cut_at = sample.get("cut_at") or {}
        for model, text in sample["answers"].items():
            prompt = [sample["prompt_id"], sample["kind"], _turns(sample["prompt"])]
            yield [*prompt, model, text, cut_at.get(model)]


def _turns(messages: Sequence[Mapping[str, str]]) -> str:
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


def _why(row: Mapping[str, Any]) -> str:
    failure = row["failure"]
    return f"{failure['kind']}: {failure['message']}" if failure else ""
