"""What a person sees of a run: bars with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from cai_core.cli.terminal import clean

PLAIN_EVERY_S = 15.0  # one line per quarter minute keeps a log readable; our choice


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="dim")


class RunDisplay:
    """An ``Observer`` that writes to standard error, so that standard output stays for results."""

    def __init__(self, *, quiet: bool = False, labels: bool = True) -> None:
        """quiet: say nothing. labels: after a stage that labels, what was measured."""
        self._labels = labels
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._last = 0.0
        self._part: tuple[str, float, int] | None = None
        self._number = ""

    def __enter__(self) -> RunDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line for people."""
        self.console.print(escape(clean(text)))

    def stage_started(self, stage: str, number: int, total: int) -> None:
        """A new bar, or a line."""
        self._last, self._part = time.monotonic(), None
        self._number = f"[{number}/{total}]"
        if self.console.is_terminal:
            self._task = self._bar.add_task(escape(f"{self._number} {stage}"), total=None, note="starting")
        else:
            self.console.print(escape(f"{self._number} {stage} ..."))

    def progress(self, stage: str, done: int, total: int, note: str) -> None:
        """Move the bar, or print a line now and then."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=escape(clean(note)))
            return
        now = time.monotonic()
        if self._part is None or self._part[0] != note:
            self._part = note, now, done  # what was there before, or was another part's work, says nothing of the rate
        if now - self._last < PLAIN_EVERY_S:
            return
        self._last = now
        _, started, before = self._part
        rate = (done - before) / (now - started) if now > started else 0.0
        speed = f", {rate:.2g}/s, {(total - done) / rate:.0f} s left" if rate > 0 else ""
        what = f" {note}" if note else ""
        self.console.print(escape(clean(f"{self._number} {stage}: {done}/{total}{what}{speed}")))

    def stage_ended(self, stage: str, status: str, info: Mapping[str, Any]) -> None:
        """One line per stage."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        facts = []
        if status == "reused":
            facts.append("reused")
        elif "seconds" in info:
            facts.append(f"{info['seconds']:.1f} s")
        if info.get("peak_mb") and status != "reused":
            facts.append(f"{info['peak_mb'] / 1024:.1f} GB")
        if info.get("ok"):
            facts.append(f"{info['ok']} ok")
        facts += [f"{n} {kind}" for kind, n in dict(info.get("failed") or {}).items()]
        if info.get("units_resumed") and status != "reused":
            facts.append(f"{info['units_resumed']} from the ledger")
        mark = {"ok": "[green]ok[/]", "partial": "[yellow]partial[/]", "reused": "[cyan]reused[/]"}.get(
            status, f"[red]{escape(status)}[/]"
        )
        shown = [fact for fact in facts if fact != status]
        self.console.print(f"{escape(stage):<22} {mark:<20} {escape(', '.join(shown))}")
        if status != "reused":
            for note in info.get("notes") or ():
                self.console.print(f"  [dim]{escape(clean(str(note)))}[/]", soft_wrap=True)
        if self._labels and "labels" in info and "warnings" in info:
            from cai_core.pipeline.labels import statistics_lines

            for line in statistics_lines(info["labels"], principles=False):
                self.console.print(escape(clean(f"  {line}")), soft_wrap=True)
            for warning in info["warnings"]:
                self.console.print(f"  [yellow]![/] {escape(clean(warning))}", soft_wrap=True)


def summary_table(summary: Mapping[str, Any], findings: Sequence[Mapping[str, str]]) -> None:
    """The report's table and its findings, on standard output."""
    console = Console(highlight=False)
    models = summary["models"]
    if summary["metrics"]:
        table = Table(title="Before and after (95 % interval, n)", title_justify="left")
        table.add_column("metric")
        for model in models:
            table.add_column(escape(clean(model["label"])))
        for metric in summary["metrics"]:
            cells = [_cell(metric["values"].get(model["name"]), metric["unit"]) for model in models]
            table.add_row(escape(clean(metric["label"])), *cells)
        console.print(table)
    for title in dict.fromkeys(finding["title"] for finding in findings if finding["level"] == "warning"):
        console.print(f"[yellow]![/] {escape(clean(title))}")


def _cell(value: Mapping[str, Any] | None, unit: str) -> str:
    if value is None or value["value"] is None:
        return "not scored"
    scale, digits, sign = (100, 1, " %") if unit == "rate" else (1, 2, "")
    numbers = [f"{scale * value[key]:.{digits}f}" for key in ("value", "low", "high") if value[key] is not None]
    interval = f" [{numbers[1]}, {numbers[2]}]".replace("[", "\\[") if len(numbers) == 3 else ""
    failed = f", {value['failed']} failed" if value["failed"] else ""
    return f"{numbers[0]}{sign}{interval} n={value['n']}{failed}"
