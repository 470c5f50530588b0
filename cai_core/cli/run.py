"""``cai run``: do what a recipe says."""

from __future__ import annotations

import json
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import click

from cai_core.cli.progress import RunDisplay, summary_table
from cai_core.cli.setup import prepare, recipe_options


@click.command("run")
@recipe_options
@click.option("--run-dir", type=click.Path(path_type=Path), help="Run folder; default RUNS/<recipe>-<digest>.")
@click.option("--until", metavar="STAGE", help="Stop after this stage.")
@click.option("--json", "as_json", is_flag=True, help="Print run.json at the end, nothing else on standard output.")
def command(
    recipe: str,
    overrides: tuple[str, ...],
    store: Path,
    runs: Path,
    limit: int | None,
    strict_plugins: bool,
    retry_failed: bool,
    run_dir: Path | None,
    until: str | None,
    as_json: bool,
) -> None:
    """Run RECIPE (a built-in name or a YAML file): only what is not there yet, and go on after any crash."""
    signal.signal(signal.SIGTERM, _terminate)
    start = time.monotonic()
    plan = prepare(recipe, overrides, store, runs, limit, strict_plugins, retry_failed)
    folder = run_dir or runs / plan.run_id
    display = RunDisplay(quiet=as_json)
    from cai_core.pipeline.runner import run_plan

    options = [part for override in overrides for part in ("-o", override)]
    line = shlex.join(["cai", "run", recipe, *options, *(["--limit", str(limit)] if limit else [])])
    with display:
        record = run_plan(plan, store, folder, display, until=until, command=line)
    if as_json:
        click.echo(json.dumps(record, indent=2, sort_keys=True, allow_nan=False))
        return
    _print_end(record, folder, time.monotonic() - start)


def _print_end(record: dict[str, Any], folder: Path, seconds: float) -> None:
    ran = [s for s in record["stages"] if s["status"] in ("ok", "partial") and not s.get("reused")]
    reused = [s for s in record["stages"] if s.get("reused")]
    if record.get("summary"):
        summary_table(record["summary"], record.get("findings", []))
    if not ran:
        click.echo(f"All {len(reused)} stages were there already; nothing was run again ({seconds:.0f} s).")
    else:
        click.echo(f"{len(ran)} stages run, {len(reused)} reused, {seconds:.0f} s. Status: {record['status']}.")
    infra = sum(int((s.get("info", {}).get("failed") or {}).get("infra", 0)) for s in record["stages"])
    if infra:
        click.echo(f"{infra} units failed for a reason of the machine or server: `--retry-failed` asks for them again.")
    click.echo(f"Run folder: {folder}")
    for name in record.get("report", []):
        if name.endswith(".html"):
            click.echo(f"Report: {folder / name}")


def _terminate(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt
