"""``cai schema``: JSON Schema of recipes and constitutions, so that editors complete and check them."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("schema")
@click.argument("what", type=click.Choice(["recipe", "constitution"]), default="recipe")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file.")
def command(what: str, out: Path | None) -> None:
    """Print the JSON Schema of recipes, with the options of all installed components; or that of constitutions.

    An editor with a YAML language server uses it for a recipe that begins with the line
    "# yaml-language-server: $schema=recipe.schema.json".
    """
    from cai_core.constitution import constitution_schema
    from cai_core.plugins import load_plugins
    from cai_core.registry import Registry
    from cai_core.schema import recipe_schema

    schema = constitution_schema() if what == "constitution" else recipe_schema(Registry(load_plugins()))
    text = json.dumps(schema, indent=2)
    if out is None:
        click.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
        click.echo(f"Wrote {out}")
