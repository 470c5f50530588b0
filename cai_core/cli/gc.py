"""``cai gc``: free what no run refers to."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cai_core.cli.terminal import clean, columns
from cai_core.errors import UserError


@click.command("gc")
@click.option("--store", type=click.Path(path_type=Path), default=Path(".cai/store"), show_default=True)
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    multiple=True,
    default=[Path("runs")],
    show_default=True,
    help="Folder of runs, or a run's own, whose artifacts stay; several times for several.",
)
@click.option("--yes", is_flag=True, help="Delete. Without it, only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(store: Path, runs: tuple[Path, ...], yes: bool, as_json: bool) -> None:
    """Delete the artifacts in the store that no run refers to: models, tables, checkpoints.

    Delete the folder of a run that you no longer want first. Whatever goes can be made again from its recipe; single
    texts and labels stay in the ledgers, so that no model is asked for them twice.
    """
    from cai_core.store.garbage import garbage, referred, remove
    from cai_core.store.lock import store_lock

    if not (store / "artifacts").is_dir():
        raise UserError("not a store: it has no artifacts", where=str(store), hint="name it with --store")
    for folder in runs:
        if not folder.is_dir():
            raise UserError(
                "no such folder, so nothing would be kept for it", where=str(folder), hint="name it with --runs"
            )
    with store_lock(store, say=lambda text: click.echo(clean(text), err=True)):
        keep, count = referred(runs)
        if not count:
            hint = "name the folder of your runs with --runs; to free everything, delete the store"
            raise UserError("no run is there, so everything would go", where=", ".join(map(str, runs)), hint=hint)
        found = garbage(store, keep)
        if yes:
            remove(found)
    total = sum(item.bytes for item in found)
    if as_json:
        rows = [{"path": str(item.path), "bytes": item.bytes} for item in found]
        click.echo(json.dumps({"runs": count, "deleted": yes, "bytes": total, "items": rows}, indent=2))
        return
    if found:
        click.echo(columns(("MB", "FOLDER"), [(f"{item.bytes / 1e6:.1f}", item.path) for item in found]))
    what = f"{len(found)} folders, {total / 1e6:,.1f} MB" if len(found) != 1 else f"1 folder, {total / 1e6:,.1f} MB"
    kept = f"{count} runs in {', '.join(map(str, runs))} keep the rest" if count != 1 else "1 run keeps the rest"
    click.echo(clean(f"{'Deleted' if yes else 'Would delete'} {what}; {kept}."))
    if found and not yes:
        click.echo("Give --yes to delete.")
