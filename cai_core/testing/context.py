"""A ``StageContext`` for tests: a folder, models and components of your choice, and a crash on request."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_core.plugins import load_plugins
from cai_core.registry import Registry
from cai_core.types.backend import Backend
from cai_core.types.context import StageContext
from cai_core.types.principles import Constitution, Principle
from cai_core.types.records import Conversation
from cai_core.types.reward import Preference, RewardModel

PRINCIPLES = (
    Principle(
        "harm",
        critique="Say what in the assistant's last response could hurt somebody.",
        revision="Rewrite the response so that it hurts nobody.",
        comparison="Which of these responses is less harmful?",
        tags=("harmlessness",),
    ),
    Principle(
        "honest",
        critique="Say what in the assistant's last response is not true.",
        revision="Rewrite the response so that all of it is true.",
        comparison="Which of these responses is more honest?",
        weight=2.0,
    ),
    Principle(
        "kind",
        critique="Say what in the assistant's last response is unkind.",
        revision="Rewrite the response in a kinder tone.",
        comparison="Choose the response that a kind person would give.",
    ),
)

CONSTITUTION = Constitution("kit", "1", "Three principles for tests", PRINCIPLES, digest="0" * 64)


@functools.cache
def registry() -> Registry:
    """All installed plugins."""
    return Registry(load_plugins())


class Interrupted(BaseException):
    """What ``TestContext`` raises in the place of a crash; no component may catch it."""


class TestProgress:
    """Keeps what was reported; raises ``Interrupted`` at the report number ``stop_at``, counted from 1."""

    __test__ = False

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.seen: list[tuple[int, int]] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        """See ``types.context.Progress``."""
        self.seen.append((done, total))
        if len(self.seen) == self.stop_at:
            raise Interrupted


class TestContext:
    """A ``StageContext``. backends: role -> backend, "" for all other roles. components: kind -> object.
    labels: for ``preferences``. heldout: for ``heldout_reward``."""

    __test__ = False

    def __init__(
        self,
        workdir: Path,
        *,
        seed: int = 11,
        backends: Mapping[str, Backend] | None = None,
        components: Mapping[str, Any] | None = None,
        constitution: Constitution = CONSTITUTION,
        stop_at: int | None = None,
        labels: Sequence[Preference] | None = None,
        heldout: RewardModel | None = None,
    ) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self.seed = seed
        self.workdir = workdir
        self.device = "cpu"
        self.constitution = constitution
        self.progress = TestProgress(stop_at)
        self.backends = dict(backends or {})
        self.components = dict(components or {})
        self.labels = labels
        self.heldout = heldout

    def backend(self, role: str) -> Backend:
        """The backend of this role."""
        if role not in self.backends and "" not in self.backends:
            raise AssertionError(f"the component asked for a model in the role {role!r}; there are {[*self.backends]}")
        return self.backends.get(role) or self.backends[""]

    def component(self, kind: str) -> Any:
        """The component of this kind."""
        if kind not in self.components:
            raise AssertionError(f"the component asked for a {kind}; name it in `needs` of Component and of the test")
        return self.components[kind]

    def member(self, kind: str, name: str, options: Mapping[str, Any], context: StageContext) -> Any:
        """The component of an installed plugin."""
        offer = registry().find(kind, name)
        return offer.component.factory(registry().options(offer, options, where=offer.id), context)

    def reward_model(self, folder: Path) -> Any:
        """The reward model among the components, whatever the folder."""
        return self.component("reward_model")

    def preferences(self) -> Sequence[Preference]:
        """The labels given."""
        if self.labels is None:
            raise AssertionError('the component asked for labels; name "label" in `learns_from` of Component and here')
        return self.labels

    def may_learn(self, prompt: Conversation) -> bool:
        """From all."""
        return True

    def heldout_reward(self) -> RewardModel | None:
        """The one given."""
        return self.heldout
