"""``cai constitution``: what a model is held to, for people who never train one."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cai_core.cli.terminal import clean, columns

if TYPE_CHECKING:
    from cai_core.types.principles import Constitution


@click.group("constitution")
def command() -> None:
    """List and show constitutions."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the built-in constitutions."""
    from cai_core.constitution import list_constitutions

    found = list_constitutions()
    if as_json:
        keys = ("id", "version", "title", "licence", "source", "digest")
        rows = [{**{key: getattr(c, key) for key in keys}, "principles": len(c.principles)} for c in found]
        click.echo(json.dumps({"constitutions": rows}, indent=2))
        return
    table = [(c.id, c.version, len(c.principles), c.digest[:12], c.title) for c in found]
    click.echo(columns(("NAME", "VERSION", "PRINCIPLES", "DIGEST", "TITLE"), table))


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(name: str, as_json: bool) -> None:
    """Show every principle of NAME: a built-in constitution, or the path of a YAML file."""
    from cai_core.constitution import load_constitution

    constitution = load_constitution(name)
    if as_json:
        click.echo(json.dumps(_as_dict(constitution), indent=2))
        return
    click.echo(clean(f"{constitution.title} ({constitution.id} {constitution.version})", one_line=True))
    for label, text in (
        ("licence", constitution.licence),
        ("source", constitution.source),
        ("digest", constitution.digest),
    ):
        if text:
            click.echo(clean(f"{label}: {text}", one_line=True))
    for number, principle in enumerate(constitution.principles, start=1):
        tags = f" [{', '.join(principle.tags)}]" if principle.tags else ""
        click.echo()
        click.echo(clean(f"{number}. {principle.id}, weight {principle.weight:g}{tags}", one_line=True))
        for label, text in (
            ("critique", principle.critique),
            ("revision", principle.revision),
            ("comparison", principle.comparison),
        ):
            if text:
                click.echo(clean(f"   {label}: {text}"))


def _as_dict(constitution: Constitution) -> dict[str, Any]:
    return {"schema": 1, **asdict(constitution)}
