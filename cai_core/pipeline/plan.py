"""What a run would do: digests of all stages, which are there already, and why the others are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cai_core.constitution import load_constitution
from cai_core.errors import CAIError, UserError, UserErrors
from cai_core.pipeline.components import Resolver
from cai_core.pipeline.graph import Graph, Stage, build_graph, identity_digest
from cai_core.pipeline.models import ExternalModel, locate
from cai_core.pipeline.prompts import LoadedPrompts, planned_prompts
from cai_core.pipeline.tables import prompt_record
from cai_core.recipe import RecipeFile
from cai_core.registry import Registry
from cai_core.store.artifacts import Artifacts
from cai_core.store.canonical import digest
from cai_core.store.ledger import last_attempt
from cai_core.types.principles import Constitution

T = TypeVar("T")

TRAINED = {"sft": "sft_base", "reward": "reward_base", "rl": "policy"}
"""The role of the model that a stage trains."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage with its digest. ``why`` is empty when the artifact is there.

    How often units of it that failed as ``infra`` were asked for again is part of the identity, so that what was made
    from the incomplete artifact is made again, and stays.
    """

    stage: Stage
    digest: str
    identity: Mapping[str, Any]
    cached: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run before it runs.

    attempt: as which every stage of it records its units. With ``retry_failed`` it is one that no ledger of the store
    has: ``infra`` failures are asked for again wherever they stand, also in stages after the one that is tried again,
    and whichever recipe they come from. Else 0, which asks for none again.
    """

    file: RecipeFile
    graph: Graph
    constitution: Constitution
    models: Mapping[str, ExternalModel]
    prompts: LoadedPrompts
    stages: tuple[PlannedStage, ...]
    run_id: str
    attempt: int = 0


def make_plan(
    file: RecipeFile,
    registry: Registry,
    store: Path,
    runs: Path,
    *,
    limit: int | None = None,
    retry_failed: bool = False,
) -> Plan:
    """Resolve everything and compute every digest. Raises ``UserErrors`` with all problems of the recipe.

    retry_failed: a stage whose artifact has ``infra`` failures is made once more, and of the units that are recorded
    those that failed so are asked for again, in it and in what follows from it.
    """
    problems: list[UserError] = []
    resolver = Resolver(registry)
    resolver.check_options_section(file, problems)
    constitution = _collect(
        problems, lambda: load_constitution(file.recipe.constitution, file.folder), file.where(("constitution",))
    )
    empty = Constitution("", "", "", ())
    graph = _collect(problems, lambda: build_graph(file, resolver, constitution or empty, limit=limit), "")
    models = {}
    names = {("models", role): name for role, name in file.recipe.models.items() if not name.startswith("@")}
    if graph is not None:  # what no stage uses is neither fetched nor hashed, e.g. a judge beside people's labels
        used = graph.external_models()
        names = {path: name for path, name in names.items() if name in used}
    for path, name in names.items():
        where = file.where(path)
        found = _collect(problems, partial(locate, name, file.folder, where, store / "model-digests.json"), where)
        if found is not None:
            models[name] = found
    prompts = LoadedPrompts()
    if graph is not None and constitution is not None:
        for stage in graph.stages:
            if stage.kind == "prompts" and not stage.models:
                where = file.where(("prompts",))
                load = partial(planned_prompts, registry, stage, constitution, file.recipe.seed, where)
                prompts = _collect(problems, load, where) or prompts
        for name in graph.external_models():
            if name not in models and name not in names.values():
                where = file.where(("evaluate", "models"))
                found = _collect(
                    problems, partial(locate, name, file.folder, where, store / "model-digests.json"), where
                )
                if found is not None:
                    models[name] = found
    for stage in graph.stages if graph is not None else ():
        for role, use in stage.models.items():
            # Other roles of such a stage are asked, not trained: the judge of a reward, say.
            trained = role == TRAINED.get(stage.kind)
            if trained and use.name in models and models[use.name].source == "server":
                problems.append(
                    UserError(
                        f"the stage {stage.id} trains the model in the role {role!r}, and {use.name} is on a server",
                        where=file.where(("models", role)),
                        hint=f"give models.{role} a folder, a catalog name or a hub id",
                    )
                )
    if problems:
        unique = {str(problem): problem for problem in problems}
        raise UserErrors(list(unique.values()))
    assert graph is not None  # no problem was collected
    assert constitution is not None
    return _with_digests(file, graph, constitution, models, prompts, store, runs, retry_failed)


def _with_digests(
    file: RecipeFile,
    graph: Graph,
    constitution: Constitution,
    models: Mapping[str, ExternalModel],
    prompts: LoadedPrompts,
    store: Path,
    runs: Path,
    retry_failed: bool,
) -> Plan:
    artifacts = Artifacts(store / "artifacts")
    external = {name: model.digest for name, model in models.items()}
    previous = _previous_identities(runs, file.recipe.name)
    digests: dict[str, str] = {}
    first: dict[str, str] = {}  # as if no stage had a second attempt: names the run folder
    planned = []
    for stage in graph.stages:
        content = {}
        if stage.kind == "prompts" and not stage.models:
            content["content"] = digest([prompt_record(prompt) for prompt in prompts.prompts])
        first[stage.id] = identity_digest(graph.identity(stage, first, external) | content)
        identity = graph.identity(stage, digests, external) | content
        identity, failed = _attempt(artifacts, stage.kind, identity, retry_failed)
        sha = digests[stage.id] = identity_digest(identity)
        cached = artifacts.find(stage.kind, sha) is not None
        why = ""
        if not cached and artifacts.damaged(stage.kind, sha):
            why = "damaged"
        elif not cached:
            why = f"{failed} infra failures, tried again" if failed else _why(stage, identity, previous, digests)
        planned.append(PlannedStage(stage, sha, identity, cached, why))
    short = digest(sorted(first.items()))[:8]
    attempt = last_attempt(store / "ledger") + 1 if retry_failed else 0
    return Plan(file, graph, constitution, models, prompts, tuple(planned), f"{file.recipe.name}-{short}", attempt)


def _attempt(
    artifacts: Artifacts, kind: str, identity: dict[str, Any], retry_failed: bool
) -> tuple[dict[str, Any], int]:
    """The identity of the newest attempt at a stage, or with ``retry_failed`` of one that has no ``infra`` failure or
    is still to be made; and how many failures it is to mend."""
    attempt, failed = 0, 0
    while True:
        artifact = artifacts.find(kind, identity_digest(identity))
        following = {**identity, "attempt": attempt + 1}
        left = int((artifact.info.get("failed") or {}).get("infra", 0)) if artifact else 0
        # A damaged one is made anew as what it was, so the attempt after it counts only if it is there.
        there = artifacts.path(kind, identity_digest(following)).exists()
        if not there and not (left and retry_failed):
            return identity, failed
        identity, attempt, failed = following, attempt + 1, left


def _collect(problems: list[UserError], action: Callable[[], T], where: str) -> T | None:
    """The result of ``action``, or None with its user errors added to ``problems``."""
    try:
        return action()
    except UserErrors as error:
        problems.extend(error.problems)
    except UserError as error:
        problems.append(UserError(error.message, where=error.where or where, hint=error.hint))
    except CAIError:
        raise
    return None


def latest_run(runs: Path, recipe_name: str) -> dict[str, Any] | None:
    """``run.json`` of the newest run of a recipe."""
    found = []
    if runs.is_dir():
        for path in runs.glob("*/run.json"):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if record.get("recipe_name") == recipe_name:
                found.append((path.stat().st_mtime_ns, record))
    return max(found, key=lambda item: item[0])[1] if found else None


def _previous_identities(runs: Path, recipe_name: str) -> dict[str, dict[str, Any]]:
    record = latest_run(runs, recipe_name) or {}
    return {stage["id"]: stage for stage in record.get("stages", []) if "identity" in stage}


def _why(
    stage: Stage, identity: Mapping[str, Any], previous: Mapping[str, Mapping[str, Any]], digests: Mapping[str, str]
) -> str:
    before = previous.get(stage.id)
    if before is None:
        return "not run yet"
    changes = list(_differences(before["identity"], identity, ""))
    if not changes:
        return "not finished yet" if before.get("status") not in ("ok", "partial") else "its artifact is gone"
    named = []
    for path, old, new in changes:
        if path.startswith(("inputs.", "models.")):
            role = path.partition(".")[2]
            source = stage.inputs.get(role) or (stage.models[role].stage if role in stage.models else "")
            named.append(f"{source or role} changed")
        else:
            named.append(f"{path}: {_short(old)} -> {_short(new)}")
    return "; ".join(dict.fromkeys(named))


def _differences(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            found += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    if path == "components" and isinstance(old, list) and isinstance(new, list):
        was, now = ({_place(c): c for c in components} for components in (old, new))
        found = []
        for key in {**was, **now}:
            name = " ".join(part for part in key if part)
            if key not in was or key not in now:
                found.append((name, "absent" if key not in was else "present", "present" if key in now else "absent"))
            else:
                found += _differences(
                    {"id": was[key]["id"], "revision": was[key]["revision"], **was[key]["options"]},
                    {"id": now[key]["id"], "revision": now[key]["revision"], **now[key]["options"]},
                    name,
                )
        return found
    lists = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    if lists and all(isinstance(item, Mapping) for item in (*old, *new)):
        pairs = enumerate(zip(old, new, strict=True))
        return [found for i, (one, other) in pairs for found in _differences(one, other, f"{path}.{i}")]
    return [] if old == new else [(path, old, new)]


def _place(component: Mapping[str, Any]) -> tuple[str, str]:
    """What a component is in its stage: one of several of its kind by its id or role, else the one of its kind."""
    several = component["kind"] in ("evaluator", "reporter")
    return component["kind"], component["id"] if several else component.get("role", "")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else text[:37] + "..."
