"""Every kind has a hook, a Protocol, a worked example and at least one built-in component."""

from __future__ import annotations

import ast
import inspect
import re
from textwrap import dedent
from typing import Any

import pytest

from cai_core import hookspecs
from cai_core.hookspecs import PROJECT
from cai_core.plugins import KINDS, load_plugins

HOOKS = {
    name: function
    for name, function in vars(hookspecs).items()
    if inspect.isfunction(function) and hasattr(function, f"{PROJECT}_spec")
}


def example(hook: str) -> str:
    """The code below ``Example::`` in a hook's docstring."""
    text = inspect.getdoc(HOOKS[hook]) or ""
    return dedent(text.partition("Example::")[2])


def test_hooks_and_kinds_are_the_same_list() -> None:
    assert {kind.hook for kind in KINDS.values()} == set(HOOKS)
    assert len({kind.hook for kind in KINDS.values()}) == len(KINDS) == 10


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_a_protocol_in_the_types_package(name: str) -> None:
    protocol = KINDS[name].protocol
    assert getattr(protocol, "_is_protocol", False)
    assert protocol.__module__.startswith("cai_core.types.")
    assert inspect.getdoc(protocol)
    methods = [member for key, member in vars(protocol).items() if inspect.isfunction(member) and key[0] != "_"]
    assert methods
    assert all(inspect.getdoc(method) for method in methods), "every method says what it guarantees"


@pytest.mark.parametrize("name", KINDS)
def test_a_hook_is_documented_with_an_example_that_uses_it(name: str) -> None:
    hook = KINDS[name].hook
    function = HOOKS[hook]
    document = inspect.getdoc(function) or ""
    assert f"kind ``{name}``" in document
    protocol = KINDS[name].protocol
    assert f"``{protocol.__name__}`` (``{protocol.__module__}``)" in document
    tree = ast.parse(example(hook))
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == hook]
    assert len(defined) == 1
    assert [ast.unparse(decorator) for decorator in defined[0].decorator_list] == ["hookimpl"]
    assert not inspect.signature(function).parameters
    assert re.search(rf"Component\[{protocol.__name__}\]", str(function.__annotations__["return"]))


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_a_built_in_component(name: str) -> None:
    plugins = load_plugins()
    own = [offer for offer in plugins.offers if offer.kind == name and offer.distribution == "cai-core"]
    assert own, [str(failure) for failure in plugins.failures]
    for offer in own:
        for field, info in offer.component.options.model_fields.items():
            assert info.description, f"{offer.id}: the option {field} has no description"


def test_no_built_in_plugin_failed() -> None:
    assert [str(failure) for failure in load_plugins().failures] == []


@pytest.mark.parametrize("name", KINDS)
def test_a_contract_says_all_that_an_author_must_know(name: str) -> None:
    document = inspect.getdoc(KINDS[name].protocol) or ""
    for word in ("Order", "Shapes and units", "Ownership", "Errors", "Determinism"):
        assert re.search(rf"^{word}: \S", document, flags=re.M), f"{name}: {word}"


@pytest.mark.parametrize("name", KINDS)
def test_an_example_is_a_whole_plugin(name: str) -> None:
    """Run as it stands it registers one component; tests/e2e/test_third_party.py puts each to work."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example(KINDS[name].hook), name, "exec"), names)
    (component,) = names[KINDS[name].hook]()
    assert all(field.description for field in component.options.model_fields.values())
    component.options()
