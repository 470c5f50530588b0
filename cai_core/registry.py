"""Which components there are, which one a name means, and whether its options are right."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cai_core.errors import PluginError, UserError, UserErrors
from cai_core.plugins import KINDS, Kind, Offer, PluginFailure, Plugins, canonical_name
from cai_core.types.component import EXECUTION
from cai_core.yamlio import near_name

__all__ = ["KINDS", "Kind", "Offer", "Registry", "dumped_options", "identity_options"]

Where = str | Callable[[tuple[str | int, ...]], str]


class Registry:
    """The offers of all loaded plugins. It never changes."""

    def __init__(self, plugins: Plugins) -> None:
        self._offers = plugins.offers
        self.failures: tuple[PluginFailure, ...] = plugins.failures
        self.disabled = plugins.disabled

    def offers(self, kind: str | None = None) -> tuple[Offer, ...]:
        """All offers of a kind, or of all kinds; built-in ones first, then by distribution."""
        if kind is None:
            return self._offers
        _check_kind(kind)
        return tuple(offer for offer in self._offers if offer.kind == kind)

    def find(self, kind: str, name: str) -> Offer:
        """The offer that ``name`` means: a full id ("x-extras/vote") or a bare name that only one offers.

        Raises ``UserError`` that lists what there is, or all providers of an ambiguous name, and plugins that
        failed to load.
        """
        offers = self.offers(kind)
        distribution, slash, bare = name.rpartition("/")
        wanted = f"{canonical_name(distribution)}/{bare}" if slash else name
        matches = [offer for offer in offers if wanted == (offer.id if slash else offer.component.name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            listed = "\n".join(
                f"  - {match.id} ({match.distribution} {match.version}, plugin {match.plugin_id})" for match in matches
            )
            raise UserError(
                f"{kind} '{name}' is offered more than once:\n{listed}",
                hint=f"Name one in full, for example '{matches[0].id}'.",
            )
        raise UserError(f"unknown {kind} '{name}'", hint=self.hint(bare, offers))

    def hint(self, name: str, offers: Sequence[Offer]) -> str:
        """What to tell a user whose ``name`` none of ``offers`` has: near name, all names, plugins not used."""
        bare = [offer.component.name for offer in offers]
        shown = sorted({o.component.name if bare.count(o.component.name) == 1 else o.id for o in offers})
        hints = [near_name(name, bare), f"Available: {', '.join(shown) or 'none'}."]
        hints += [f"- {' '.join(str(failure).split())}" for failure in self.failures]
        hints += [f"- plugin {plugin_id} is disabled" for plugin_id in self.disabled]
        return "\n  ".join(hint for hint in hints if hint)

    def options(self, offer: Offer, mapping: Mapping[str, Any], *, where: Where = "") -> BaseModel:
        """The checked options of a component.

        Raises ``UserErrors`` with every problem, each at its own path. where: path of the component in the
        recipe, which the option's path is appended to, or a function from the option's path to such a text.
        """
        model = offer.component.options
        try:
            return model.model_validate(dict(mapping))
        except ValidationError as error:
            items = error.errors(include_url=False)
            problems = [_problem(item, offer, model, where) for item in items if not _follows(item, items)]
        except Exception as error:
            raise PluginError(
                f"the options of {offer.kind} {offer.id} cannot be checked: {type(error).__name__}: {error}",
                where=f"plugin {offer.plugin_id}",
                hint="This is a fault of the plugin; tell its author.",
            ) from error
        raise UserErrors(problems)


OfPath = Callable[[Path, tuple[str | int, ...]], str]


def _as_it_is(path: Path, at: tuple[str | int, ...]) -> str:
    return str(path)


def identity_options(options: BaseModel, of_path: OfPath = _as_it_is) -> dict[str, Any]:
    """The options that a digest covers, as JSON values, without fields marked ``EXECUTION`` at any depth.

    Equal options give equal results on every machine: sets are sorted. of_path: what stands for a path, given where in
    the options it is. Raises ``UserError`` on NaN and inf.
    """
    result = _dumped_model(options, of_path, (), identity=True)
    try:
        json.dumps(result, allow_nan=False)
    except ValueError:
        message = f"{type(options).__name__}: an option is NaN or infinite"
        raise UserError(message, hint="Give finite numbers.") from None
    return result


def marked(field: Any, mark: Mapping[str, Any]) -> bool:
    """Whether an option's ``Field`` has ``json_schema_extra`` of this mark (``EXECUTION``, ``SCOPE``)."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and mark.items() <= extra.items()


def dumped_options(options: BaseModel, of_path: OfPath) -> dict[str, Any]:
    """All options as JSON values, with ``of_path`` of every path at any depth."""
    return _dumped_model(options, of_path, (), identity=False)


def _dumped_model(options: BaseModel, of_path: OfPath, at: tuple[str | int, ...], *, identity: bool) -> dict[str, Any]:
    left_out = {name for name, field in type(options).model_fields.items() if marked(field, EXECUTION)}
    dumped = options.model_dump(mode="json", exclude=left_out if identity else None)
    return {
        name: _dumped_value(getattr(options, name), value, of_path, (*at, name), identity)
        for name, value in dumped.items()
    }


def _dumped_value(value: Any, dumped: Any, of_path: OfPath, at: tuple[str | int, ...], identity: bool) -> Any:
    if isinstance(value, Path):
        return of_path(value, at)
    if isinstance(value, BaseModel) and isinstance(dumped, dict):
        return _dumped_model(value, of_path, at, identity=identity)
    if isinstance(value, (list, tuple, set, frozenset)) and isinstance(dumped, list) and len(value) == len(dumped):
        pairs = enumerate(zip(value, dumped, strict=True))
        items = [_dumped_value(item, shown, of_path, (*at, i), identity) for i, (item, shown) in pairs]
        if isinstance(value, (set, frozenset)):
            items.sort(key=lambda item: json.dumps(item, sort_keys=True))
        return items
    if isinstance(value, Mapping) and isinstance(dumped, dict) and len(value) == len(dumped):
        return {
            key: _dumped_value(item, shown, of_path, (*at, key), identity)
            for (key, shown), item in zip(dumped.items(), value.values(), strict=True)
        }
    return dumped


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        hint = f"{near_name(kind, KINDS)} Kinds: {', '.join(KINDS)}.".strip()
        raise UserError(f"unknown kind '{kind}'", hint=hint)


def _follows(item: Any, items: Sequence[Any]) -> bool:
    """Whether a list is found too short only because what is wrong in it was not counted."""
    at = item["loc"]
    return item["type"] == "too_short" and any(other["loc"][: len(at)] == at != other["loc"] for other in items)


def _problem(item: Any, offer: Offer, model: type[BaseModel], where: Where) -> UserError:
    path: tuple[str | int, ...] = tuple(item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")  # pydantic's word for what a validator says
    hint = ""
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        message = f"{offer.kind} '{offer.component.name}' has no option '{path[-1]}'"
        hint = near_name(str(path[-1]), known)
        hint = f"{hint} Options: {', '.join(known) or 'none'}.".strip()
    elif item["type"] == "missing":
        message = f"{offer.kind} '{offer.component.name}' needs the option '{path[-1]}'"
    if callable(where):
        return UserError(message, where=where(path), hint=hint)
    return UserError(message, where=".".join(str(part) for part in (where, *path) if part != ""), hint=hint)


def _fields_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Names of the options of the nested model at ``path``; of none where it cannot be told (unions)."""
    current: list[type[BaseModel]] = [model]
    for part in path:
        if isinstance(part, int):
            continue
        current = [
            inner
            for outer in current
            if part in outer.model_fields
            for inner in _models_in(outer.model_fields[part].annotation)
        ]
    return [field.alias or name for found in current for name, field in found.model_fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]
