"""``cai report``: show what a run found."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cai_core.cli.progress import summary_table
from cai_core.cli.terminal import clean
from cai_core.errors import UserError


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def command(run: Path, as_json: bool) -> None:
    """Print the summary of the run folder RUN and where its report lies."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError("not a run folder: it has no run.json", where=str(run), hint="see runs/") from error
    except ValueError as error:
        raise UserError(f"run.json is damaged: {error}", where=str(run)) from error
    if as_json:
        click.echo(json.dumps(record, indent=2, sort_keys=True))
        return
    if record.get("summary"):
        summary_table(record["summary"], record.get("findings", []))
    for stage in record["stages"]:
        if stage["status"] in ("error", "cancelled", "started"):
            click.echo(clean(f"{stage['id']}: {stage['status']} {stage.get('error', '')}".rstrip()))
    click.echo(clean(f"Status: {record['status']}"))
    for name in record.get("report", []):
        click.echo(clean(run / name))
