"""``cai plan``: what a run would do, and why."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cai_core.cli.setup import prepare, recipe_options
from cai_core.cli.terminal import clean


@click.command("plan")
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    recipe: str,
    overrides: tuple[str, ...],
    store: Path,
    runs: Path,
    limit: int | None,
    strict_plugins: bool,
    retry_failed: bool,
    as_json: bool,
) -> None:
    """Say which stages of RECIPE would run, which are reused, and why. Nothing is run or written."""
    plan = prepare(recipe, overrides, store, runs, limit, strict_plugins, retry_failed)
    rows = [
        {"stage": p.stage.id, "action": "reuse" if p.cached else "run", "why": p.why, "digest": p.digest}
        for p in plan.stages
    ]
    if as_json:
        click.echo(json.dumps({"run_id": plan.run_id, "stages": rows, "notes": plan.graph.notes}, indent=2))
        return
    width = max(len(row["stage"]) for row in rows)
    for row in rows:
        click.echo(clean(f"{row['stage']:<{width}}  {row['action']:<5}  {row['why']}").rstrip())
    for note in plan.graph.notes:
        click.echo(clean(note))
    todo = sum(row["action"] == "run" for row in rows)
    click.echo(f"{todo} to run, {len(rows) - todo} reused. Run folder: {runs / plan.run_id}")
