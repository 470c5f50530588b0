"""``cai plugins doctor``: what is wrong with the installed plugins, and what to do about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from cai_core.cli.terminal import clean

if TYPE_CHECKING:
    from cai_core.plugins import Offer


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> int:
    """Say of every plugin whether it works, and why not. Exit code 1 when one does not."""
    from cai_core.plugins import load_plugins

    plugins = load_plugins()
    working: dict[str, list[Offer]] = {}
    for offer in plugins.offers:
        working.setdefault(offer.plugin_id, []).append(offer)
    clashes = _clashes(plugins.offers)
    if as_json:
        result: dict[str, Any] = {
            "working": [
                {"plugin": name, "version": offers[0].version, "components": [f"{o.kind} {o.id}" for o in offers]}
                for name, offers in working.items()
            ],
            "disabled": list(plugins.disabled),
            "failed": [
                {"plugin": f.plugin_id, "version": f.version, "reason": f.reason, "hint": f.hint, "detail": f.detail}
                for f in plugins.failures
            ],
            "clashes": clashes,
        }
        click.echo(json.dumps(result, indent=2))
        return int(bool(plugins.failures))
    for name, offers in working.items():
        click.echo(clean(f"ok        {name} ({offers[0].version}): {len(offers)} component(s)", one_line=True))
    for name in plugins.disabled:
        click.echo(clean(f"disabled  {name}", one_line=True))
    for failure in plugins.failures:
        click.echo(clean(f"failed    {failure.plugin_id} ({failure.version}): {failure.reason}"))
        if failure.hint:
            click.echo(clean(f"          {failure.hint}"))
    for clash in clashes:
        click.echo(clean(f"clash     {clash['kind']} '{clash['name']}': name it in full: {', '.join(clash['ids'])}"))
    return int(bool(plugins.failures))


def _clashes(offers: tuple[Offer, ...]) -> list[dict[str, Any]]:
    """Bare names that several distributions offer; they work, but only by their full id."""
    by_name: dict[tuple[str, str], list[str]] = {}
    for offer in offers:
        by_name.setdefault((offer.kind, offer.component.name), []).append(offer.id)
    return [{"kind": kind, "name": name, "ids": ids} for (kind, name), ids in by_name.items() if len(ids) > 1]
