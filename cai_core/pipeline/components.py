"""From names in a recipe to components with checked options, and back to objects in a worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_core.errors import PluginError, UserError, UserErrors
from cai_core.plugins import Offer
from cai_core.recipe import ComponentRef, RecipeFile
from cai_core.registry import KINDS, Registry, dumped_options, identity_options
from cai_core.store.canonical import content_sha256


@dataclass(frozen=True, slots=True)
class ComponentUse:
    """A component as a stage uses it. ``options``: all of them, JSON; ``identity_options``: those that a digest
    covers, with the content of files in place of their paths. ``role``: of the model that a backend holds, where that
    is not the stage's own. ``learns_from``: of an RL algorithm; ``reads``: of an evaluator. ``distributed``: whether it
    trains in several processes. ``members``: what it is made of, whose options and identity are in its own.
    ``trains``: whether it, or what it is made of, trains a model."""

    kind: str
    id: str
    revision: int
    version: str
    options: dict[str, Any]
    identity_options: dict[str, Any]
    needs: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    role: str = ""
    learns_from: tuple[str, ...] = ()
    distributed: bool = False
    reads: tuple[str, ...] = ()
    members: tuple[ComponentUse, ...] = ()
    trains: bool = True

    def identity(self) -> dict[str, Any]:
        """What the digest of a stage covers of it."""
        found = {"kind": self.kind, "id": self.id, "revision": self.revision, "options": self.identity_options}
        return found | ({"role": self.role} if self.role else {})

    def as_dict(self) -> dict[str, Any]:
        """For a worker's job."""
        found = {"kind": self.kind, "id": self.id, "options": self.options, "revision": self.revision}
        found["role"] = self.role
        return found | ({"members": [member.as_dict() for member in self.members]} if self.members else {})

    def parts(self) -> Iterator[ComponentUse]:
        """It and all that it is made of, at any depth."""
        yield self
        for member in self.members:
            yield from member.parts()


class Resolver:
    """Looks components up in the registry and merges their options."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def use(
        self,
        kind: str,
        ref: ComponentRef,
        file: RecipeFile,
        path: Sequence[str | int],
        problems: list[UserError],
        *,
        member: bool = False,
    ) -> ComponentUse | None:
        """The component that ``ref`` names, or None with what is wrong appended to ``problems``. A ``member`` of
        another one has the options that stand beside its name, and none of those under ``options:``."""
        where = file.where(path)
        defaults: dict[str, Any] = {}

        def option_path(sub: tuple[str | int, ...]) -> tuple[str | int, ...]:
            if sub and sub[0] in defaults and sub[0] not in ref.options:
                return ("options", kind, offer.component.name, *sub)
            return (*path, *sub)

        def option_where(sub: tuple[str | int, ...]) -> str:
            return file.where(option_path(sub))

        try:
            offer = self.registry.find(kind, ref.name)
            defaults = {} if member else self._defaults(kind, offer.component.name, offer.id, file)
            given = {**defaults, **ref.options}
            if kind == "backend":
                if "model" in given:
                    raise UserError("the backend's model is set by `models:`", where=where, hint="remove `model`")
                given["model"] = ""

            options = self.registry.options(offer, given, where=option_where)
        except UserErrors as error:
            problems.extend(error.problems)
            return None
        except UserError as error:
            problems.append(UserError(error.message, where=error.where or where, hint=error.hint))
            return None
        missing: dict[tuple[str | int, ...], UserError] = {}

        def located(value: Path, at: tuple[str | int, ...]) -> str:
            resolved = (file.folder / value).resolve()
            if not resolved.exists():
                hint = f"looked for {resolved}"
                missing[at] = UserError(f"no such file: {value}", where=option_where(at), hint=hint)
            return str(resolved)

        def content(value: Path, at: tuple[str | int, ...]) -> str:
            resolved = Path(located(value, at))
            return f"sha256:{content_sha256(resolved)}" if resolved.exists() else str(resolved)

        dumped, identity = dumped_options(options, located), identity_options(options, content)
        problems.extend(missing.values())
        if kind == "backend":
            identity.pop("model", None)
        component = offer.component
        needs, roles = _of(offer, options, "needs"), _of(offer, options, "roles")
        members = []
        entries = getattr(options, component.members) if component.members else ()
        for number, entry in enumerate(entries):
            at = option_path((component.members, number))
            chosen = ComponentRef.model_validate({**(entry.model_extra or {}), "name": getattr(entry, kind)})
            part = self.use(kind, chosen, file, at, problems, member=True)
            if part is None:
                continue
            for own, theirs in ((dumped, {kind: part.id, **part.options}), (identity, {kind: part.identity()})):
                listed = own[component.members][number]
                fields = {key: listed[key] for key in type(entry).model_fields if key in listed and key != kind}
                own[component.members][number] = {**theirs, **fields}
            needs += part.needs
            roles += tuple(getattr(entry, "role", role) if role == "judge" else role for role in part.roles)
            members.append(part)
        if len(members) < len(entries):
            return None
        learns_from = tuple(component.learns_from) if kind == "rl_algorithm" else ()
        if "reward" in learns_from:
            needs = ("reward_model", *needs)
        return ComponentUse(
            kind,
            offer.id,
            component.revision,
            offer.version,
            dumped,
            identity,
            tuple(dict.fromkeys(needs)),
            tuple(dict.fromkeys(roles)),
            learns_from=learns_from,
            distributed=component.distributed,
            reads=_of(offer, options, "reads") if kind == "evaluator" else (),
            members=tuple(members),
            trains=component.trains or any(part.trains for part in members),
        )

    def _defaults(self, kind: str, name: str, full_id: str, file: RecipeFile) -> dict[str, Any]:
        section = file.recipe.options.get(kind, {})
        return {**section.get(name, {}), **section.get(full_id, {})}

    def check_options_section(self, file: RecipeFile, problems: list[UserError]) -> None:
        """Everything under ``options:`` must be right, whether or not the component is chosen."""
        for kind, components in file.recipe.options.items():
            if kind not in KINDS:
                problems.append(
                    UserError(
                        f"unknown kind {kind!r}",
                        where=file.where(("options", kind)),
                        hint=f"kinds: {', '.join(KINDS)}",
                    )
                )
                continue
            for name in components:
                self.use(kind, ComponentRef(name=name), file, ("options", kind, name), problems)


def _of(offer: Offer, options: Any, what: str) -> tuple[str, ...]:
    """``roles``, ``needs`` or ``reads`` of a component with these options."""
    declared = tuple(getattr(offer.component, what))
    function = getattr(offer.component, f"{what}_of")
    if function is None:
        return declared
    try:
        asked = set(function(options))
    except Exception as error:
        raise PluginError(f"{what}_of failed: {type(error).__name__}: {error}", where=offer.id) from error
    if unknown := asked - set(declared):
        raise PluginError(
            f"{what}_of names {', '.join(sorted(map(str, unknown)))}, which `{what}` does not", where=offer.id
        )
    return tuple(name for name in declared if name in asked)


def parts(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """``ComponentUse.parts`` of what a worker's job holds of it."""
    yield spec
    for member in spec.get("members", ()):
        yield from parts(member)


def build_component(registry: Registry, spec: dict[str, Any], context: Any) -> Any:
    """The object that a worker's job asks for. Raises ``UserError`` when the installed plugin no longer fits."""
    for part in parts(spec):
        offer = registry.find(part["kind"], part["id"])
        if offer.component.revision != part["revision"]:
            raise UserError(
                f"{part['id']} has revision {offer.component.revision} now and had {part['revision']} when the run "
                "began",
                hint="give the same command again",
            )
    offer = registry.find(spec["kind"], spec["id"])
    options = registry.options(offer, spec["options"], where=spec["id"])
    return offer.component.factory(options, context)
