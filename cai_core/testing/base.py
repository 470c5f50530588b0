"""What the conformance classes of all kinds share."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cai_core.plugins import Offer
from cai_core.registry import identity_options
from cai_core.testing.context import TestContext, registry
from cai_core.types.backend import Backend
from cai_core.types.reward import Preference

HEAVY = ("torch", "transformers", "trl", "datasets", "numpy", "evaluate", "peft", "accelerate", "scipy")
"""What a plugin's module may not import at the top: ``cai plugins list`` imports it."""


class Conformance:
    """The contract of one kind as tests. Subclass the class of the kind and name a component::

        class TestShorter(LabelerConformance):
            component_id = "my-package/shorter"
            options: ClassVar = {"scale": 10}

    component_id: of an installed component; or override ``make`` to build the object in another way.
    options: in which it is tested. needs: kind -> (component id, options) of what it asks the context for.
    deviations: name of a test -> why the component does not pass it. The test then counts as an expected failure,
    and fails when it passes after all. There is no other way to leave a test out or to change it: a subclass that
    defines a test of the contract again is refused.
    """

    kind: ClassVar[str]
    component_id: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    needs: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {}
    deviations: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__.startswith("cai_core.testing"):
            return
        for name in vars(cls):
            if name.startswith("test_") and any(name in vars(base) for base in cls.__mro__[1:]):
                raise TypeError(f"{cls.__name__} defines {name} again; use deviations = {{{name!r}: 'the reason'}}")
        for name, reason in cls.deviations.items():
            test = getattr(cls, name, None)
            if not name.startswith("test_") or test is None:
                raise TypeError(f"{cls.__name__}.deviations names {name!r}, which is no test of the contract")
            if not isinstance(reason, str) or not reason.strip():
                raise TypeError(f"{cls.__name__}.deviations: {name} needs a reason")
            # A copy, since the mark must not reach the contract's own function.
            function = types.FunctionType(
                test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__
            )
            function.__dict__.update(copy.copy(test.__dict__))
            function.__annotations__ = test.__annotations__
            function.__kwdefaults__ = test.__kwdefaults__
            setattr(cls, name, pytest.mark.xfail(reason=reason, strict=True)(function))

    # what subclasses may change ----------------------------------------------------------------------------------

    def make(self, context: TestContext, **changed: Any) -> Any:
        """The object under test, ``changed`` options over ``options``."""
        return build(self.kind, self.component_id, {**self.options, **changed}, context)

    def context(
        self,
        folder: Path,
        *,
        stop_at: int | None = None,
        seed: int = 11,
        backend: Backend | None = None,
        components: Mapping[str, Any] | None = None,
        changed: Mapping[str, Mapping[str, Any]] | None = None,
        labels: Sequence[Preference] | None = None,
    ) -> TestContext:
        """A context with all that ``needs`` names. changed: kind -> options of a needed component that differ."""
        backends = {"": backend} if backend is not None else {}
        context = TestContext(folder, stop_at=stop_at, seed=seed, backends=backends, labels=labels)
        for kind, (name, options) in self.needs.items():
            context.components[kind] = build(kind, name, {**options, **(changed or {}).get(kind, {})}, context)
        context.components.update(components or {})
        return context

    # the contract of every kind ----------------------------------------------------------------------------------

    def offer(self) -> Offer:
        """The registered component."""
        if not self.component_id:
            pytest.skip("no component_id: what is tested is not registered")
        return registry().find(self.kind, self.component_id)

    def test_registered_with_documented_options(self) -> None:
        """It is on offer under its id; summary and every option say what they are; options round-trip as JSON."""
        component = self.offer().component
        assert component.summary.strip(), "a summary"
        for name, field in component.options.model_fields.items():
            assert (field.description or "").strip(), f"option {name}: Field(..., description=...) is missing"
        options = registry().options(self.offer(), self.options, where=self.component_id)
        text = options.model_dump_json()
        assert component.options.model_validate_json(text) == options, "options survive being written and read"
        assert json.loads(json.dumps(identity_options(options), allow_nan=False)) == identity_options(options)

    def test_declares_what_it_needs(self) -> None:
        """``needs`` of the registered component and of this test are the same."""
        assert sorted(self.offer().component.needs) == sorted(self.needs)

    def test_module_is_light(self) -> None:
        """The plugin's module imports no training library: it is imported whenever components are listed."""
        origin = self.offer().origin
        program = f"import sys, {origin}\nprint(*sorted({set(HEAVY)!r} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not done.stdout.split(), f"{origin} imports {done.stdout.strip()}; import it in the factory"


def build(kind: str, name: str, options: Mapping[str, Any], context: TestContext) -> Any:
    """An installed component as the pipeline builds it."""
    if not name:
        raise TypeError(f"set component_id, or override make: which {kind} is it?")
    offer = registry().find(kind, name)
    return offer.component.factory(registry().options(offer, options, where=name), context)


def local_model(folder: Path) -> Backend:
    """The model in ``folder``, asked by the built-in backend."""
    backend: Backend = build("backend", "cai-core/transformers", {"model": str(folder)}, TestContext(folder))
    return backend
