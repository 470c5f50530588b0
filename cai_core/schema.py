"""JSON Schema of a recipe, with the options of all installed components, for editors and for checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cai_core.recipe import BACKEND_ROLES, ROLES, Recipe
from cai_core.registry import KINDS, Offer, Registry

DRAFT = "https://json-schema.org/draft/2020-12/schema"

SLOTS: Mapping[tuple[str, str], str] = {
    ("Recipe", "backend"): "backend",
    ("Recipe", "prompts"): "prompts",
    ("Recipe", "sft"): "trainer",
    ("Recipe", "reward"): "reward_model",
    ("HeldoutRewardSection", "reward_model"): "reward_model",
    ("Recipe", "rl"): "rl_algorithm",
    ("ReviseSection", "critique_template"): "critique_template",
    ("ReviseSection", "principle_sampler"): "principle_sampler",
    ("LabelSection", "labeler"): "labeler",
    ("LabelSection", "principle_sampler"): "principle_sampler",
    ("LabelSection", "audit"): "evaluator",
    ("EvaluateSection", "evaluators"): "evaluator",
    ("EvaluateSection", "labeler"): "labeler",
    ("EvaluateSection", "principle_sampler"): "principle_sampler",
    ("EvaluateSection", "reward_model"): "reward_model",
    ("ReportSection", "reporters"): "reporter",
}
"""Where a recipe names a component -> its kind."""


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """The schema. A component is a name, or a mapping with ``name`` and its options; unknown names and options are
    errors, summaries and option texts are descriptions. Whether required options are there is not checked: they may
    stand under ``options``."""
    schema = Recipe.model_json_schema(by_alias=True)
    sections: dict[str, Any] = schema.pop("$defs")
    sections.pop("ComponentRef")
    for (section, field), kind in SLOTS.items():
        properties = (schema if section == "Recipe" else sections[section])["properties"]
        properties[field] = _with_kind(properties[field], kind)
    # What ``Recipe`` takes in short.
    properties = schema["properties"]
    properties["label"] = _or(properties["label"], {"$ref": "#/$defs/kind.labeler"})
    properties["heldout_reward"] = _or(properties["heldout_reward"], {"$ref": "#/$defs/kind.reward_model"})
    properties["launch"] = _or(properties["launch"], {"type": "integer", "minimum": 1, "maximum": 1024})
    for name, kind in (("evaluate", "evaluator"), ("report", "reporter")):
        one = {"$ref": f"#/$defs/kind.{kind}"}
        properties[name] = _or(properties[name], one, {"type": "array", "items": one, "minItems": 1})
    properties["backends"] = {
        "type": "object",
        "description": properties["backends"]["description"],
        "properties": {role: {"$ref": "#/$defs/kind.backend"} for role in BACKEND_ROLES},
        "additionalProperties": False,
    }
    properties["models"] |= {
        "properties": {role: {"type": "string"} for role in ("base", *ROLES)},
        "additionalProperties": False,
    }
    launch = sections["LaunchSection"]["properties"]
    for name in ("sft", "reward", "rl"):
        launch[name] = _or(launch[name], {"type": "integer", "minimum": 1, "maximum": 1024})
    definitions: dict[str, Any] = dict(sections)
    for kind in KINDS:
        definitions |= _kind(registry, kind)
    properties["options"] = {
        "type": "object",
        "description": properties["options"]["description"],
        "properties": {kind: {"$ref": f"#/$defs/options.{kind}"} for kind in KINDS},
        "additionalProperties": False,
    }
    return {"$schema": DRAFT, "title": "cai-core recipe", **schema, "$defs": definitions}


def _kind(registry: Registry, kind: str) -> dict[str, Any]:
    """``kind.K``: a component by name or with options. ``options.K``: options by component."""
    definitions: dict[str, Any] = {}
    names: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    sections: dict[str, Any] = {}
    offers = registry.offers(kind)
    bare = [offer.component.name for offer in offers]
    for offer in offers:
        options, inner = _options(offer)
        definitions |= inner
        known = [offer.id] if bare.count(offer.component.name) > 1 else [offer.component.name, offer.id]
        names += [{"const": name, "description": offer.component.summary} for name in known]
        cases.append(
            {
                "if": {"properties": {"name": {"enum": known}}, "required": ["name"]},
                "then": {
                    "description": offer.component.summary,
                    "properties": {"name": {}, **options},
                    "additionalProperties": False,
                },
            }
        )
        for name in known:
            sections[name] = {"type": "object", "properties": options, "additionalProperties": False}
    known_names = {"oneOf": names} if names else False
    definitions[f"kind.{kind}"] = {
        "if": {"type": "string"},
        "then": known_names,
        "else": {"type": "object", "properties": {"name": known_names}, "required": ["name"], "allOf": cases},
    }
    definitions[f"options.{kind}"] = {"type": "object", "properties": sections, "additionalProperties": False}
    return definitions


def _options(offer: Offer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Properties of an option model, and the definitions that they refer to, under names of their own."""
    prefix = f"{offer.kind}.{offer.id.replace('/', '.')}."
    schema = offer.component.options.model_json_schema(by_alias=True, ref_template=f"#/$defs/{prefix}{{model}}")
    inner = {f"{prefix}{name}": found for name, found in schema.get("$defs", {}).items()}
    properties = dict(schema.get("properties", {}))
    if offer.kind == "backend":
        properties.pop("model", None)  # the pipeline's
    return properties, inner


def _with_kind(field: dict[str, Any], kind: str) -> dict[str, Any]:
    """``field`` with the components of ``kind`` where it has any component."""
    if field.get("$ref") == "#/$defs/ComponentRef":
        return {**field, "$ref": f"#/$defs/kind.{kind}"}
    result = dict(field)
    if "items" in result:
        result["items"] = _with_kind(result["items"], kind)
    if "anyOf" in result:
        # Not anyOf: a wrong option would be reported as "fits none of them".
        component, nothing = result.pop("anyOf")
        result |= {"if": nothing, "else": _with_kind(component, kind)}
    return result


def _or(field: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """``field``, or one of ``others``."""
    return {**field, "anyOf": [*field["anyOf"], *others]}
