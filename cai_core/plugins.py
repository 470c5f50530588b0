"""From installed distributions to components on offer: find -> sort -> check -> load -> register.

A plugin is a module named by an entry point of the group ``cai_core``; its id is ``<distribution>:<entry>``.
A plugin is taken whole or not at all: one that cannot be loaded, or breaks the contract of
``cai_core.hookspecs``, is remembered as a ``PluginFailure`` and never disturbs the others.
``importlib.metadata`` is walked here because pluggy's own loader silently skips a second plugin of the same
entry name.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from types import ModuleType
from typing import Any

import pluggy

from cai_core import __version__, hookspecs
from cai_core.errors import PluginError
from cai_core.hookspecs import HOOKSPEC_VERSION, PROJECT
from cai_core.recipe import ROLES
from cai_core.types.backend import Backend
from cai_core.types.component import Component
from cai_core.types.critique import CritiqueTemplate
from cai_core.types.evaluator import Evaluator
from cai_core.types.labeler import Labeler
from cai_core.types.principles import PrincipleSampler
from cai_core.types.prompts import PromptSource
from cai_core.types.reporter import Reporter
from cai_core.types.reward import RewardModel
from cai_core.types.rl import RLAlgorithm
from cai_core.types.trainer import Trainer
from cai_core.yamlio import near_name

OWN_DISTRIBUTION = "cai-core"
DISABLE_VARIABLE = "CAI_DISABLE_PLUGINS"
VERSION_ATTRIBUTE = "CAI_HOOKSPEC_VERSION"
"""Name in a plugin's module: the versions of the hooks that it is written for; the present one where it is absent."""
MAX_COMPONENTS = 1000
"""Most components one hook may yield: our choice, so that an endless generator is a failure, not a hang."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_ENTRY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of component. ``protocol`` is what the factories' objects must do."""

    name: str
    hook: str
    protocol: type[Any]


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("backend", "cai_register_backends", Backend),
        Kind("prompts", "cai_register_prompts", PromptSource),
        Kind("principle_sampler", "cai_register_principle_samplers", PrincipleSampler),
        Kind("critique_template", "cai_register_critique_templates", CritiqueTemplate),
        Kind("labeler", "cai_register_labelers", Labeler),
        Kind("trainer", "cai_register_trainers", Trainer),
        Kind("reward_model", "cai_register_reward_models", RewardModel),
        Kind("rl_algorithm", "cai_register_rl_algorithms", RLAlgorithm),
        Kind("evaluator", "cai_register_evaluators", Evaluator),
        Kind("reporter", "cai_register_reporters", Reporter),
    )
}


LEARNT_FROM = ("prompts", "reward", "label")
READ = ("answers", "reward", "chains", "training")
"""What an evaluator may read of a run."""
INJECTED = ("backend", "prompts", "principle_sampler", "critique_template", "labeler", "trainer", "reward_model")
"""Kinds that a component may ask its context for: those of which a recipe has one."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A component and who offers it. ``id``: ``<distribution>/<name>``; ``origin``: the plugin's module."""

    kind: str
    component: Component[Any]
    id: str
    plugin_id: str
    distribution: str
    version: str
    origin: str


@dataclass(frozen=True, slots=True)
class PluginFailure:
    """A plugin that is not used, and why. ``detail``: the traceback, where an exception was the reason."""

    plugin_id: str
    distribution: str
    version: str
    reason: str
    hint: str = ""
    detail: str = ""

    def __str__(self) -> str:
        text = f"plugin {self.plugin_id} ({self.version}) is not used: {self.reason}"
        return f"{text}\n  {self.hint}" if self.hint else text


@dataclass(frozen=True, slots=True)
class Plugins:
    """What was found: components on offer, plugins that failed, ids of the plugins that were switched off."""

    offers: tuple[Offer, ...] = ()
    failures: tuple[PluginFailure, ...] = ()
    disabled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    distribution: str
    version: str
    entry: str
    value: str

    @property
    def plugin_id(self) -> str:
        return f"{self.distribution}:{self.entry}"

    def failure(self, reason: str, hint: str = "", detail: str = "") -> PluginFailure:
        hint = hint or f"Disable it with {DISABLE_VARIABLE}={self.distribution}, or ask its author."
        return PluginFailure(self.plugin_id, self.distribution, self.version, reason, hint, detail)


class _Refused(Exception):
    def __init__(self, reason: str, hint: str = "", detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.detail = detail


def load_plugins(*, disable: Iterable[str] = (), strict: bool = False) -> Plugins:
    """Load every installed plugin. Offers stand in a fixed order: own distribution, others by name, entries.

    disable: distributions ("x-extras") or plugins ("x-extras:labelers") whose modules are not even imported;
    ``CAI_DISABLE_PLUGINS`` (comma-separated) adds to it. strict: ``PluginError`` when any plugin failed.
    """
    found, failures = _find()
    found = _sort(found)
    found, refused, disabled = _check(found, _disabled_names(disable))
    failures += refused
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    offers: dict[tuple[str, str], Offer] = {}
    for plugin in found:
        try:
            module = _load(plugin)
            new = _register(manager, plugin, module)
            for offer in new:
                if (other := offers.get((offer.kind, offer.id))) is not None:
                    raise _Refused(
                        f"{offer.kind} '{offer.component.name}' is offered by {other.plugin_id} of the same "
                        "distribution already",
                        "Give one of the two another name.",
                    )
        except _Refused as error:
            failures.append(plugin.failure(error.reason, error.hint, error.detail))
        except Exception as error:
            reason = f"cannot be checked: {type(error).__name__}: {error}"
            failures.append(plugin.failure(reason, detail=traceback.format_exc()))
        else:
            offers.update({(offer.kind, offer.id): offer for offer in new})
            continue
        if manager.has_plugin(plugin.plugin_id):
            manager.unregister(name=plugin.plugin_id)
    if strict and failures:
        raise PluginError(
            f"{len(failures)} plugin(s) cannot be used:\n" + "\n".join(str(failure) for failure in failures),
            hint="Mend or uninstall them, or disable them with CAI_DISABLE_PLUGINS.",
        )
    return Plugins(tuple(offers.values()), tuple(failures), disabled)


def canonical_name(distribution: str) -> str:
    """A distribution's name as package indexes compare it: lower case, runs of ``-_.`` as one ``-``."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _disabled_names(disable: Iterable[str]) -> set[str]:
    names = set()
    for text in [*disable, *os.environ.get(DISABLE_VARIABLE, "").split(",")]:
        distribution, colon, entry = text.strip().partition(":")
        names.add(canonical_name(distribution) + colon + entry)
    return names


def _find() -> tuple[list[_Found], list[PluginFailure]]:
    names: dict[str, str] = {}
    failures = []
    for distribution in importlib.metadata.distributions():
        try:
            if any(entry.group == PROJECT for entry in distribution.entry_points):
                name = distribution.metadata["Name"]
                names.setdefault(canonical_name(name), name)
        except Exception as error:
            # Any distribution's metadata may be broken; only one that may be a plugin is worth a word.
            if PROJECT in _entry_point_text(distribution):
                failures.append(_unreadable(distribution, error))
    found = []
    for name, given in names.items():
        # The first on sys.path is the one that Python imports; older copies behind it do not count.
        first = importlib.metadata.distribution(given)
        try:
            version = first.version or "unknown"
            entries = [entry for entry in first.entry_points if entry.group == PROJECT]
        except Exception as error:
            failures.append(_unreadable(first, error))
            continue
        found += [_Found(name, version, entry.name, entry.value) for entry in entries]
    return found, failures


def _entry_point_text(distribution: importlib.metadata.Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except Exception:
        return ""


def _unreadable(distribution: importlib.metadata.Distribution, error: Exception) -> PluginFailure:
    try:
        name, version = canonical_name(distribution.metadata["Name"]), distribution.version
    except Exception:
        name, version = "unknown", "unknown"
    reason = f"its metadata cannot be read: {type(error).__name__}: {error}"
    return PluginFailure(f"{name}:?", name, version, reason, "Install the distribution again.")


def _sort(found: list[_Found]) -> list[_Found]:
    def key(plugin: _Found) -> tuple[bool, str, str, str]:
        # Built-in plugins first, so that none can be pushed out by another that names the same module.
        return (plugin.distribution != OWN_DISTRIBUTION, plugin.distribution, plugin.entry, plugin.value)

    return sorted(set(found), key=key)


def _check(
    found: list[_Found], disable: set[str]
) -> tuple[list[_Found], list[PluginFailure], tuple[str, ...]]:
    kept: list[_Found] = []
    failures = []
    disabled = []
    ids: set[str] = set()
    for plugin in found:
        if plugin.distribution in disable or plugin.plugin_id in disable:
            disabled.append(plugin.plugin_id)
        elif not _ENTRY_NAME.match(plugin.entry):
            failures.append(plugin.failure("an entry point's name holds only letters, digits, '_', '-', '.'"))
        elif not _MODULE.match(plugin.value):
            reason = f"its entry point '{plugin.value}' is not a module"
            failures.append(plugin.failure(reason, "Name a module: 'package.plugin'."))
        elif plugin.plugin_id in ids:
            failures.append(plugin.failure("its distribution has two entry points of this name"))
        else:
            ids.add(plugin.plugin_id)
            kept.append(plugin)
    return kept, failures, tuple(disabled)


def _load(plugin: _Found) -> ModuleType:
    try:
        # What a plugin prints while it is imported must not get into the output of a command.
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(plugin.value)
    except (Exception, SystemExit) as error:
        raise _from_exception(plugin, "cannot be imported", error) from error


def _from_exception(plugin: _Found, what: str, error: BaseException) -> _Refused:
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        if plugin.value == error.name or plugin.value.startswith(error.name + "."):
            hint = f"Its module is missing: install {plugin.distribution} again."
        else:
            hint = f"Install what provides the module '{error.name}'."
    detail = "".join(traceback.format_exception(error))
    return _Refused(f"{what}: {type(error).__name__}: {error}", hint, detail)


def _register(manager: pluggy.PluginManager, plugin: _Found, module: ModuleType) -> list[Offer]:
    if (other := manager.get_name(module)) is not None:
        reason = f"its module {plugin.value} is the plugin {other} already"
        raise _Refused(reason, "Remove one of the two entry points.")
    _check_version(module)
    _check_hooks(manager, module)
    try:
        manager.register(module, name=plugin.plugin_id)
    except pluggy.PluginValidationError as error:
        # The message says module and hook first, then its own words over several lines.
        raise _Refused(" ".join(str(error).split()), "Registration hooks take no arguments.") from None
    offers: list[Offer] = []
    for kind in KINDS.values():
        for implementation in getattr(manager.hook, kind.hook).get_hookimpls():
            if implementation.plugin is not module:
                continue
            for component in _components(plugin, kind, implementation.function):
                _check_component(kind, component)
                name = component.name
                if any(offer.kind == kind.name and offer.component.name == name for offer in offers):
                    raise _Refused(f"{kind.hook} yields '{name}' twice", "Give one of the two another name.")
                offers.append(
                    Offer(
                        kind.name,
                        component,
                        f"{plugin.distribution}/{name}",
                        plugin.plugin_id,
                        plugin.distribution,
                        plugin.version,
                        plugin.value,
                    )
                )
    return offers


def _check_version(module: ModuleType) -> None:
    given = getattr(module, VERSION_ATTRIBUTE, HOOKSPEC_VERSION)
    versions = given if isinstance(given, tuple) else (given,)
    if not versions or any(type(version) is not int for version in versions):
        reason = f"{VERSION_ATTRIBUTE} is {given!r}, not a whole number or a tuple of them"
        raise _Refused(reason, f"Write {VERSION_ATTRIBUTE} = {HOOKSPEC_VERSION}.")
    if HOOKSPEC_VERSION not in versions:
        ours = f"version {HOOKSPEC_VERSION} of the hooks of cai-core {__version__}"
        reason = f"it is written for version {', '.join(map(str, versions))} of the hooks, not for {ours}"
        if min(versions) > HOOKSPEC_VERSION:
            raise _Refused(reason, "Install a newer cai-core, or an older version of the plugin.")
        raise _Refused(reason, "Install a newer version of the plugin, or an older cai-core.")


def _check_hooks(manager: pluggy.PluginManager, module: ModuleType) -> None:
    hooks = {kind.hook for kind in KINDS.values()}
    marked = False
    for attribute in dir(module):
        options = manager.parse_hookimpl_opts(module, attribute)
        if options is None:
            continue
        marked = True
        name = options.get("specname") or attribute
        if options.get("wrapper") or options.get("hookwrapper"):
            raise _Refused(f"{attribute} is a hook wrapper", "Registration hooks may not be wrapped.")
        if name not in hooks and not options.get("optionalhook"):
            near = near_name(name, hooks)
            hint = f"{near} Hooks are: {', '.join(sorted(hooks))}.".strip()
            raise _Refused(f"unknown hook '{name}'", hint)
    if not marked:
        raise _Refused("it holds no hook", "Mark its functions with cai_core.hookspecs.hookimpl.")


def _components(plugin: _Found, kind: Kind, function: Any) -> Iterator[Any]:
    """The items of one hook; any exception of the plugin, however late, is the plugin's failure."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            returned = function()
            if not isinstance(returned, Iterable) or isinstance(returned, (str, bytes)):
                raise _Refused(
                    f"{kind.hook} returned {type(returned).__name__}, not an iterable of Component",
                    "Yield the components, or return a list of them.",
                )
            items = list(islice(returned, MAX_COMPONENTS + 1))
    except _Refused:
        raise
    except (Exception, SystemExit) as error:
        raise _from_exception(plugin, f"{kind.hook} failed", error) from error
    if len(items) > MAX_COMPONENTS:
        raise _Refused(f"{kind.hook} yields more than {MAX_COMPONENTS} components", "Does its generator end?")
    yield from items


def _check_component(kind: Kind, component: Any) -> None:
    from pydantic import BaseModel

    if not isinstance(component, Component):
        reason = f"{kind.hook} yields {type(component).__name__}, not Component"
        raise _Refused(reason, "See the examples in cai_core.hookspecs.")
    name = component.name
    if not isinstance(name, str) or not _NAME.match(name):
        hint = "A name starts with a-z and goes on with a-z, 0-9 or '_'; at most 64 in all."
        raise _Refused(f"{kind.hook}: bad name {name!r}", hint)
    what = f"{kind.hook}: {kind.name} '{name}'"
    options = component.options
    if not isinstance(options, type) or not issubclass(options, BaseModel):
        raise _Refused(f"{what}: options is not a pydantic model class", "Pass a subclass of pydantic.BaseModel.")
    if options.model_config.get("extra") != "forbid" or not options.model_config.get("frozen"):
        wanted = 'model_config = ConfigDict(extra="forbid", frozen=True)'
        raise _Refused(f"{what}: {options.__name__} must forbid extras and be frozen", f"Write {wanted}.")
    for field, info in options.model_fields.items():
        if "name" in (field, info.alias, info.validation_alias):
            reason = f"{what}: {options.__name__} has a field 'name'"
            raise _Refused(reason, "In a recipe, `name` chooses the component; give the option another name.")
    if kind.name == "backend" and "model" not in options.model_fields:
        reason = f"{what}: {options.__name__} has no field 'model'"
        raise _Refused(reason, 'The pipeline sets it: write model: str = Field("", description="folder or hub id").')
    if not callable(component.factory):
        raise _Refused(f"{what}: factory is not callable", "Pass a function of (options, context).")
    if not isinstance(component.summary, str) or not component.summary.strip() or "\n" in component.summary:
        raise _Refused(f"{what}: summary is not one line of text", "Say in one line what it does.")
    if type(component.revision) is not int or component.revision < 1:
        raise _Refused(f"{what}: revision {component.revision!r} is not a whole number from 1", "The first is 1.")
    needs: Any = component.needs
    if not isinstance(component.roles, (tuple, list)) or not all(role in ROLES for role in component.roles):
        raise _Refused(f"{what}: roles {component.roles!r}", f"Give a tuple of roles: {', '.join(ROLES)}.")
    if component.roles_of is not None and not callable(component.roles_of):
        raise _Refused(f"{what}: roles_of is not callable", "Pass a function of options, or leave it out.")
    for function in ("needs_of", "reads_of"):
        if getattr(component, function) is not None and not callable(getattr(component, function)):
            raise _Refused(f"{what}: {function} is not callable", "Pass a function of options, or leave it out.")
    if component.members and component.members not in options.model_fields:
        raise _Refused(f"{what}: {options.__name__} has no field {component.members!r}", "Name the option of members.")
    read: Any = component.reads
    if not isinstance(read, (tuple, list)) or not all(name in READ for name in read):
        raise _Refused(f"{what}: reads {read!r}", f"Give a tuple of some of {', '.join(READ)}.")
    sources: Any = component.learns_from
    if not isinstance(sources, (tuple, list)) or not sources or not all(name in LEARNT_FROM for name in sources):
        raise _Refused(f"{what}: learns_from {sources!r}", f"Give a tuple of some of {', '.join(LEARNT_FROM)}.")
    allowed = [name for name in INJECTED if name != kind.name]
    if not isinstance(needs, (tuple, list)) or not all(need in allowed for need in needs):
        raise _Refused(f"{what}: needs {needs!r}", f"Give a tuple of what can be asked for: {', '.join(allowed)}.")
