"""``cai models``: models that need no account, no key and no hub."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from cai_core.cli.terminal import clean, columns
from cai_core.errors import UserError


@click.group("models")
def command() -> None:
    """List and fetch the models of the catalog."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the models of the catalog, and which are on this machine."""
    from cai_core.models.catalog import CATALOG, is_cached, model_path

    if as_json:
        rows: list[dict[str, Any]] = [
            {**asdict(entry), "name": name, "cached": is_cached(name), "path": str(model_path(name))}
            for name, entry in CATALOG.items()
        ]
        click.echo(json.dumps({"models": rows}, indent=2))
        return
    table = [
        (name, "yes" if is_cached(name) else "no", entry.licence, entry.summary) for name, entry in CATALOG.items()
    ]
    click.echo(columns(("NAME", "CACHED", "LICENCE", "SUMMARY"), table))


@command.command("pull")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Agree to what would be asked.")
def pull_command(name: str, yes: bool) -> None:
    """Fetch the catalog model NAME once and convert it to safetensors; print its folder."""
    from cai_core.models.catalog import is_cached, model_path, pull

    if is_cached(name):
        _say(f"{name} is here already.")
    else:
        pull(name, say=_say, consent=lambda question: yes or _ask(question))
    click.echo(str(model_path(name)))


def _say(text: str) -> None:
    click.echo(clean(text), err=True)


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError(clean(question), hint="Nobody can answer here: give --yes to agree.")
    return click.confirm(clean(question), err=True)
