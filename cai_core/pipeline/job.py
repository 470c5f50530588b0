"""A stage's work order, and what its components are handed in the worker process."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cai_core.errors import CAIError, EnvironmentProblem, PluginError, UserError
from cai_core.pipeline.components import build_component
from cai_core.pipeline.labels import preferences
from cai_core.registry import Registry
from cai_core.store.artifacts import Artifact, Artifacts
from cai_core.store.canonical import derive_seed
from cai_core.store.ledger import SQLiteLedger
from cai_core.text.parts import held_back
from cai_core.types.backend import Backend
from cai_core.types.context import StageContext
from cai_core.types.principles import Principle, constitution_from
from cai_core.types.prompts import Prompt
from cai_core.types.records import Conversation
from cai_core.types.reward import Preference, RewardModel

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything a worker needs, as JSON: it can run on another machine that sees the store."""

    stage_id: str
    kind: str
    digest: str
    identity: Mapping[str, Any]
    store: str
    seed: int
    device: str
    inputs: Mapping[str, tuple[str, str]]  # name -> (kind, digest) of an artifact
    models: Mapping[str, str]  # role -> folder or hub id
    components: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    constitution: Mapping[str, Any]
    disabled_plugins: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None  # the report stage only
    launch: Mapping[str, Any] | None = None  # processes and accelerate's configuration, where not one process
    attempt: int = 0  # units that failed as infra in an earlier one are asked for again

    def write(self, path: Path) -> None:
        """Write as JSON."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        path.write_text(json.dumps({"schema": SCHEMA_VERSION, **fields}, allow_nan=False), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> JobSpec:
        """Read what ``write`` wrote. Raises ``CAIError`` on another schema."""
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema", None) != SCHEMA_VERSION:
            raise CAIError("the work order was written by another version", where=str(path))
        data["inputs"] = {name: (kind, sha) for name, (kind, sha) in data["inputs"].items()}
        data["components"] = tuple(data["components"])
        data["disabled_plugins"] = tuple(data["disabled_plugins"])
        return cls(**data)


def workdir(spec: JobSpec) -> Path:
    """The stage's folder for checkpoints."""
    return Path(spec.store) / "work" / f"{spec.kind}-{spec.digest[:20]}"


class EventProgress:
    """Reports progress at most five times a second, and always at the end."""

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        self._emit = emit
        self._last = 0.0

    def update(self, done: int, total: int, note: str = "") -> None:
        """See ``types.context.Progress``."""
        now = time.monotonic()
        if done >= total or now - self._last >= 0.2:
            self._last = now
            self._emit({"event": "progress", "done": done, "total": total, "note": note})


class Job:
    """One stage at work: the ``StageContext`` that components see, and more for the stage functions."""

    def __init__(self, spec: JobSpec, registry: Registry, emit: Callable[[dict[str, Any]], None], device: str) -> None:
        self.spec = spec
        self.registry = registry
        self.emit = emit
        self.device = device
        self.seed = derive_seed(spec.seed, spec.kind, spec.digest)
        self.store = Path(spec.store)
        self.artifacts = Artifacts(self.store / "artifacts")
        self.workdir = workdir(spec)
        self.first = True  # of several processes the one that leaves the artifact
        self.progress = EventProgress(emit)
        self.constitution = constitution_from(spec.constitution)
        self._backends: dict[str, Backend] = {}
        self._components: dict[str, Any] = {}
        self._heldout_reward: RewardModel | None = None
        self._ledgers: dict[str, SQLiteLedger] = {}

    # what components may use -------------------------------------------------------------------------------------

    def backend(self, role: str) -> Backend:
        """See ``StageContext``. Only one is open at a time: two models in memory are rarely wanted, and never fit."""
        if role not in self._backends:
            if role not in self.spec.models:
                raise PluginError(
                    f"a component asked for the model in the role {role!r}; there are {sorted(self.spec.models)}",
                    hint="its author must name the role in `roles` of Component",
                )
            for other in self._backends.values():
                other.close()
            self._backends.clear()
            spec = self.component_spec("backend", role)
            options = {**spec["options"], "model": self.spec.models[role]}
            self._backends[role] = build_component(self.registry, {**spec, "options": options}, self)
        return self._backends[role]

    def component(self, kind: str) -> Any:
        """See ``StageContext``. A reward model is handed out fitted."""
        if kind not in self._components:
            built = build_component(self.registry, self.component_spec(kind), self)
            if kind == "reward_model" and "reward" in self.spec.inputs:
                built.load(self.input("reward").path / "model")
            self._components[kind] = built
        return self._components[kind]

    def member(self, kind: str, name: str, options: Mapping[str, Any], context: StageContext) -> Any:
        """See ``StageContext``."""
        offer = self.registry.find(kind, name)
        return offer.component.factory(self.registry.options(offer, options, where=offer.id), context)

    def reward_model(self, folder: Path) -> RewardModel:
        """See ``StageContext``."""
        built: RewardModel = build_component(self.registry, self.component_spec("reward_model"), self)
        built.load(folder)
        return built

    def preferences(self) -> list[Preference]:
        """See ``StageContext``."""
        if "label" not in self.spec.inputs:
            raise PluginError(
                "a component asked for the run's labels",
                hint='an algorithm that learns from them must name "label" in `learns_from` of Component',
            )
        return [pair for pair in preferences(self.input("label"))[0] if self.may_learn(pair.prompt)]

    def may_learn(self, prompt: Conversation) -> bool:
        """See ``StageContext``."""
        part = self.spec.settings.get("part")
        return part is None or held_back(prompt, part["share"]) == part["heldout"]

    def heldout_reward(self) -> RewardModel | None:
        """See ``StageContext``."""
        if self._heldout_reward is None and "heldout_reward" in self.spec.inputs:
            spec = self.component_spec("reward_model", "heldout")
            model: RewardModel = build_component(self.registry, spec, self)
            model.load(self.input("heldout_reward").path / "model")
            self._heldout_reward = model
        return self._heldout_reward

    # what stage functions use ------------------------------------------------------------------------------------

    def component_spec(self, kind: str, role: str = "") -> dict[str, Any]:
        """The chosen component of a kind, as the recipe has it; of backends the one of this role, or the stage's where
        the role has none."""
        of_kind = [spec for spec in self.spec.components if spec["kind"] == kind]
        for wanted in (role, ""):
            for spec in of_kind:
                if spec.get("role", "") == wanted:
                    return dict(spec)
        raise PluginError(f"a component asked for a {kind} that it did not declare in `needs`")

    def all_of(self, kind: str) -> list[tuple[dict[str, Any], Any]]:
        """All chosen components of a kind, with their specs."""
        specs = [dict(spec) for spec in self.spec.components if spec["kind"] == kind]
        return [(spec, build_component(self.registry, spec, self)) for spec in specs]

    def component_identity(self, kind: str) -> dict[str, Any]:
        """What a unit's identity covers of a component."""
        for entry in self.spec.identity["components"]:
            if entry["kind"] == kind:
                return dict(entry)
        return {}

    def input(self, name: str) -> Artifact:
        """The artifact of an input."""
        kind, sha = self.spec.inputs[name]
        artifact = self.artifacts.find(kind, sha)
        if artifact is None:
            raise CAIError(f"the artifact {kind}-{sha[:20]} is missing or damaged", hint="give the same command again")
        return artifact

    def check_inputs(self) -> None:
        """Read every artifact that this stage uses, its models included. One whose bytes have changed is moved aside,
        so that the next run makes it anew; raises ``EnvironmentProblem``."""
        wanted = {(kind, sha) for kind, sha in self.spec.inputs.values()}
        for role, location in self.spec.models.items():
            folder = Path(location).parent
            if folder.parent == self.artifacts.root:
                wanted.add((folder.name.rpartition("-")[0], self.model_digest(role)))
        for kind, sha in sorted(wanted):
            artifact = self.artifacts.find(kind, sha)
            if artifact is not None and (name := self.artifacts.torn(artifact)):
                moved = self.artifacts.quarantine(kind, sha)
                raise EnvironmentProblem(
                    f"{name} is not what the stage {kind} wrote: the disk or another program has changed it",
                    where=str(moved),
                    hint="it is kept there; give the same command again, and the stage is made anew from its ledger",
                )

    def model_digest(self, role: str) -> str:
        """Digest of the model in a role."""
        return str(self.spec.identity["models"][role])

    def ledger(self, name: str = "") -> SQLiteLedger:
        """The ledger of this kind of stage."""
        name = name or self.spec.kind
        if name not in self._ledgers:
            path = self.store / "ledger" / f"{name}.sqlite"
            self._ledgers[name] = SQLiteLedger(path, attempt=self.spec.attempt)
        return self._ledgers[name]

    def principles(self, text: Literal["revision", "comparison"]) -> list[Principle]:
        """The principles that have this text. Raises ``UserError`` where there is none."""
        found = [p for p in self.constitution.principles if getattr(p, text)]
        if not found:
            raise UserError(
                f"no principle has a {text} text",
                where=f"constitution {self.constitution.id}",
                hint=f"give at least one principle a `{text}`",
            )
        return found

    def draw(
        self, principles: Sequence[Principle], prompt: Prompt, step: str, index: int, rng: random.Random
    ) -> tuple[Principle, ...]:
        """What the principle sampler draws. Raises ``PluginError`` unless it is some of ``principles``."""
        drawn = self.component("principle_sampler").sample(principles, prompt=prompt, step=step, index=index, rng=rng)
        if not isinstance(drawn, tuple) or not drawn or any(principle not in principles for principle in drawn):
            name = self.component_spec("principle_sampler")["id"]
            raise PluginError(
                f"the sampler returned {drawn!r:.200}, not a tuple of at least one of the given principles",
                where=f"principle_sampler {name}",
            )
        return drawn

    def unit_seed(self, *identity: Any) -> int:
        """The seed of a unit, from the run's seed and the unit's identity alone."""
        return derive_seed(self.spec.seed, *identity)

    def retried(self) -> int:
        """How many units of this stage failed in an earlier attempt and were asked for again."""
        return sum(ledger.retried for ledger in self._ledgers.values())

    def close(self) -> None:
        """Close backends and ledgers."""
        for backend in self._backends.values():
            backend.close()
        for ledger in self._ledgers.values():
            ledger.close()
