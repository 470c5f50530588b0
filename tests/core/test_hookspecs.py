"""Every kind has a hook, a Protocol, a worked example and at least one built-in component."""

from __future__ import annotations

import ast
import inspect
import re
from textwrap import dedent

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


def test_an_example_from_the_page_works_as_a_plugin() -> None:
    """The labeler's example is complete but for its imports: run it as a plugin author would."""
    import math

    from pydantic import BaseModel, ConfigDict, Field

    from cai_core.types.component import Component
    from cai_core.types.labeler import Comparison, Label

    names = {
        "math": math,
        "BaseModel": BaseModel,
        "ConfigDict": ConfigDict,
        "Field": Field,
        "Component": Component,
        "Label": Label,
        "hookimpl": hookspecs.hookimpl,
    }
    source = example("cai_register_labelers").replace("Iterable[Component[Labeler]]", "object")
    exec(compile(source, "example", "exec"), names)
    (component,) = names["cai_register_labelers"]()  # type: ignore[operator]
    labeler = component.factory(component.options(scale=10), None)
    one = Comparison("1", (), "long answer", "short", ())
    other = Comparison("2", (), "short", "long answer", ())
    labels = list(labeler.label([one, other]))
    assert labels[0].p_a < 0.5
    assert labels[0].p_a == pytest.approx(1 - labels[1].p_a), "swapping A and B gives 1 - p"
