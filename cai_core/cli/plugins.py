"""``cai plugins``: what can be named in a recipe, and with which options."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, get_args

import click

from cai_core.cli.doctor import command as doctor
from cai_core.cli.new import command as new
from cai_core.cli.terminal import clean, columns
from cai_core.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from cai_core.plugins import Offer


@click.group("plugins")
def command() -> None:
    """List and show components, check plugins, begin one."""


command.add_command(doctor)
command.add_command(new)


@command.command("list")
@click.option("--kind", help="Only components of this kind.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(kind: str | None, as_json: bool) -> None:
    """List all components on offer, and the plugins that cannot be used."""
    from cai_core.plugins import KINDS, load_plugins
    from cai_core.registry import Registry

    registry = Registry(load_plugins())
    offers = registry.offers(kind)
    if as_json:
        failures = [
            {
                "plugin": failure.plugin_id,
                "distribution": failure.distribution,
                "version": failure.version,
                "reason": failure.reason,
                "hint": failure.hint,
            }
            for failure in registry.failures
        ]
        result = {
            "components": [_as_dict(offer) for offer in offers],
            "failures": failures,
            "disabled": list(registry.disabled),
        }
        click.echo(json.dumps(result, indent=2))
        return
    order = list(KINDS)
    shown = sorted(offers, key=lambda offer: order.index(offer.kind))
    keys = [(offer.kind, offer.component.name) for offer in shown]
    rows = [
        (
            offer.kind,
            offer.component.name if keys.count((offer.kind, offer.component.name)) == 1 else offer.id,
            offer.version,
            offer.plugin_id,
            offer.component.summary,
        )
        for offer in shown
    ]
    click.echo(columns(("KIND", "NAME", "VERSION", "ORIGIN", "SUMMARY"), rows))
    if registry.disabled:
        click.echo(clean(f"\nDisabled: {', '.join(registry.disabled)}"))
    if registry.failures:
        click.echo(f"\n{len(registry.failures)} plugin(s) cannot be used:")
        for failure in registry.failures:
            click.echo(clean(f"  {failure.plugin_id} ({failure.version}): {failure.reason}"))
            if failure.hint:
                click.echo(clean(f"    {failure.hint}"))


@command.command("show")
@click.argument("name")
@click.option("--kind", help="Only the component of this kind, where several kinds have the name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(name: str, kind: str | None, as_json: bool) -> None:
    """Show the component NAME (bare, or DISTRIBUTION/NAME): its options, their defaults and what they do."""
    from cai_core.plugins import KINDS, load_plugins
    from cai_core.registry import Registry

    registry = Registry(load_plugins())
    if kind is not None:
        found = [registry.find(kind, name)]
    else:
        found = [o for o in registry.offers() if name in (o.id, o.component.name)]
        if not found:
            raise UserError(f"unknown component '{name}'", hint=registry.hint(name, registry.offers()))
    if as_json:
        dicts = [
            {**_as_dict(offer), "options": [_json(row) for row in option_rows(offer.component.options)]}
            for offer in found
        ]
        click.echo(json.dumps({"components": dicts}, indent=2))
        return
    for number, offer in enumerate(found):
        component = offer.component
        click.echo(("\n" if number else "") + clean(f"{offer.kind} {offer.id}: {component.summary}", one_line=True))
        facts = f"  {offer.distribution} {offer.version}, plugin {offer.plugin_id}, module {offer.origin}"
        click.echo(clean(f"{facts}, revision {component.revision}", one_line=True))
        protocol = KINDS[offer.kind].protocol
        click.echo(f"  does what {protocol.__module__}.{protocol.__name__} says")
        if component.needs:
            click.echo(clean(f"  needs: {', '.join(component.needs)}", one_line=True))
        if offer.kind == "rl_algorithm":
            click.echo(clean(f"  learns from: {', '.join(component.learns_from)}", one_line=True))
        if component.roles:
            click.echo(clean(f"  asks the models in the roles: {', '.join(component.roles)}", one_line=True))
        rows = option_rows(component.options)
        if not rows:
            click.echo("  no options")
            continue
        table = [
            (
                f"  {row['name']}",
                row["type"],
                "(required)" if row["required"] else json.dumps(row["default"], ensure_ascii=False),
                (row["description"] + (" [not part of digests]" if row["execution"] else "")).strip(),
            )
            for row in rows
        ]
        click.echo(columns(("  OPTION", "TYPE", "DEFAULT", "DESCRIPTION"), table))


def _as_dict(offer: Offer) -> dict[str, Any]:
    return {
        "kind": offer.kind,
        "name": offer.component.name,
        "id": offer.id,
        "version": offer.version,
        "revision": offer.component.revision,
        "distribution": offer.distribution,
        "plugin": offer.plugin_id,
        "origin": offer.origin,
        "summary": offer.component.summary,
        "needs": list(offer.component.needs),
        "roles": list(offer.component.roles),
    }


def _json(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "default" or not row["required"]}


def option_rows(model: type[BaseModel], prefix: str = "") -> list[dict[str, Any]]:
    """One row per option, nested ones too: name, type, required, default, description, execution."""
    from pydantic import BaseModel

    from cai_core.types.component import EXECUTION

    rows: list[dict[str, Any]] = []
    for name, field in model.model_fields.items():
        shown = prefix + (field.alias or name)
        extra = field.json_schema_extra
        rows.append(
            {
                "name": shown,
                "type": _type_name(field),
                "required": field.is_required(),
                "default": _default(field),
                "description": " ".join((field.description or "").split()),
                "execution": isinstance(extra, dict) and EXECUTION.items() <= extra.items(),
            }
        )
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                rows += option_rows(inner, f"{shown}.")
    return rows


def _type_name(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else ""
    # Without the modules of names, and with what stands in quotes as it is.
    text = text or re.sub(r"('[^']*')|\b(?:\w+\.)+(\w+)", lambda match: match[1] or match[2], str(annotation))
    limits = [
        f"{sign}{getattr(limit, key)}"
        for limit in field.metadata
        for key, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"), ("min_length", "length>="))
        if getattr(limit, key, None) is not None
    ]
    return " ".join([text, *limits])


def _default(field: FieldInfo) -> Any:
    from pydantic_core import to_jsonable_python

    if field.is_required():
        return None
    try:
        value = field.get_default(call_default_factory=True, validated_data={})
        return to_jsonable_python(value, fallback=str, inf_nan_mode="strings")
    except Exception:
        return "computed"  # a default that a plugin derives from other options cannot be shown on its own
