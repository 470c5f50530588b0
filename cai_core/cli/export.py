"""``cai export``: the data of a run as data sets that others can load and train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cai_core.pipeline.export import Exported


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="New folder.")
@click.option("--format", "form", type=click.Choice(["parquet", "jsonl"]), default="parquet", show_default=True)
@click.option("--store", type=click.Path(path_type=Path), default=Path(".cai/store"), show_default=True)
@click.option("--ties", is_flag=True, help="Keep preferences with a probability of exactly 0.5.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: Path, out: Path, form: str, store: Path, ties: bool, as_json: bool) -> None:
    """Write the SFT examples and AI preferences of the run folder RUN in TRL's conversational format.

    OUT gets one folder per data set and a data card (README.md): constitution, digests, counts, what was left out and
    why. It loads with datasets.load_dataset(OUT, NAME) and can be pushed to a hub as it is.
    """
    from cai_core.pipeline.export import export

    exported: list[Exported] = export(run, store, out, form, ties=ties)
    if as_json:
        found = [{"name": e.name, "rows": e.rows, "left_out": e.left_out} for e in exported]
        click.echo(json.dumps({"out": str(out), "data_sets": found}, indent=2))
        return
    for entry in exported:
        left_out = ", ".join(f"{n} {reason}" for reason, n in entry.left_out.items())
        rows = f"{entry.rows} rows" if entry.rows else "no rows, so it is not written"
        click.echo(f"{entry.name}: {rows}" + (f"; left out: {left_out}" if left_out else ""))
    click.echo(f"Wrote {out}")
