"""A recipe as a graph of named stage instances.

``prompts -> revise -> sft -> pairs -> label -> reward -> rl -> answers -> evaluate -> report``, each optional; ``rl``
takes what its algorithm learns from. ``heldout_reward`` is a second ``reward`` on labels set apart, for ``rl`` to look
at. Branches share every stage that their overrides leave equal; ``iterate: N`` repeats pairs -> label -> reward -> rl
with the current policy. Names: ``rl``, ``rl[grpo]`` (branch), ``rl[2]``
(iteration), ``rl[grpo,2]``; as a model ``rl@20`` too: the snapshot at step 20 of that stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cai_core.errors import UserError, UserErrors
from cai_core.pipeline.components import ComponentUse, Resolver
from cai_core.pipeline.labels import by_people
from cai_core.pipeline.launch import launch_of
from cai_core.recipe import ComponentRef, Recipe, RecipeFile, SamplingSection
from cai_core.store.canonical import digest, file_sha256
from cai_core.types.principles import Constitution

BRANCH_SECTIONS = ("revise", "sft", "pairs", "label", "reward", "heldout_reward", "rl")
_TEXT_STAGES = ("revise", "label", "audit")  # the stages that read the constitution's texts


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model in a role: ``stage`` made it, or it comes from outside as ``name`` (catalog, hub id or folder).
    snapshot: the step of that stage at which it was so; 0 is its result."""

    name: str = ""
    stage: str = ""
    snapshot: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """One node. ``inputs`` and stage models name other nodes; the digest covers everything but ``id``, ``launch``
    (see ``launch_of``) and ``places``: paths that its worker reads, whose content is in ``settings``."""

    id: str
    kind: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, ModelUse] = field(default_factory=dict)
    components: tuple[ComponentUse, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    launch: Mapping[str, Any] | None = None

    def parents(self) -> tuple[str, ...]:
        """Ids of the stages it needs, each once."""
        found = [*self.inputs.values(), *(use.stage for use in self.models.values() if use.stage)]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Graph:
    """Stages in an order in which they can run. ``notes``: what the recipe might let one expect and is not there."""

    recipe: RecipeFile
    constitution: Constitution
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    def identity(
        self, stage: Stage, digests: Mapping[str, str], external: Mapping[str, str]
    ) -> dict[str, Any]:
        """What the digest of ``stage`` covers. ``digests``: of the stages before; ``external``: of outside models."""
        models = {
            role: snapshot_name(digests[use.stage], use.snapshot) if use.stage else external[use.name]
            for role, use in stage.models.items()
        }
        return {
            "stage": stage.kind,
            "seed": self.recipe.recipe.seed,
            "settings": dict(stage.settings),
            "components": [use.identity() for use in stage.components],
            "models": models,
            "inputs": {name: digests[source] for name, source in stage.inputs.items()},
            "constitution": self.constitution.digest if _reads_texts(stage) else "",
        }

    def external_models(self) -> tuple[str, ...]:
        """Names of all models from outside, each once."""
        names = [use.name for stage in self.stages for use in stage.models.values() if use.name]
        return tuple(dict.fromkeys(names))


def snapshot_name(of: str, step: int) -> str:
    """``rl@20`` of ``rl`` and 20; ``of`` itself where there is no step."""
    return f"{of}@{step}" if step else of


def at_step(name: str) -> tuple[str, int]:
    """The way back from ``snapshot_name``: of ``rl@20`` ``rl`` and 20, of any other name itself and 0."""
    of, _, step = name.partition("@")
    return (of, int(step)) if step.isdecimal() else (name, 0)


def answerer(stage: str) -> str:
    """The model whose answers a stage ``answers[MODEL]`` holds."""
    return stage.removeprefix("answers[").removesuffix("]")


def identity_digest(identity: Mapping[str, Any]) -> str:
    """The digest that names an artifact."""
    return digest(identity)


def build_graph(file: RecipeFile, resolver: Resolver, constitution: Constitution, *, limit: int | None = None) -> Graph:
    """Resolve every component and lay out the stages. All problems of the recipe are raised at once."""
    builder = _Builder(file, resolver, limit)
    stages = builder.build()
    if any(stage.kind in ("label", "audit") for stage in stages) and not any(
        principle.comparison for principle in constitution.principles
    ):
        hint = "give at least one principle a `comparison`, e.g. 'Which of these responses is less harmful?'"
        where = f"constitution {constitution.id}"
        message = "no principle has a comparison text, so nothing can judge"
        builder.problems.append(UserError(message, where=where, hint=hint))
    if builder.problems:
        unique = {str(problem): problem for problem in builder.problems}
        raise UserErrors(list(unique.values()))
    return Graph(file, constitution, tuple(stages), tuple(dict.fromkeys(builder.notes)))


class _Builder:
    def __init__(self, file: RecipeFile, resolver: Resolver, limit: int | None) -> None:
        self.file = file
        self.resolver = resolver
        self.limit = limit
        self.problems: list[UserError] = []
        self.notes: list[str] = []
        self.stages: dict[str, Stage] = {}

    def build(self) -> list[Stage]:
        variants = self._variants()
        # what each branch last produced: kind -> stage id
        latest: dict[str, dict[str, str]] = {branch: {} for branch in variants}
        trained: dict[str, str] = {}  # model name in the report -> stage id
        recipe = self.file.recipe
        for kind in ("prompts", "revise", "sft", "audit"):
            for stage_id in self._add(kind, variants, latest, 0).values():
                if kind == "sft":
                    trained[stage_id] = stage_id
        for number in range(1, recipe.iterate + 1):
            for kind in ("pairs", "label", "reward", "heldout_reward", "rl"):
                for branch, stage_id in self._add(kind, variants, latest, number).items():
                    if kind == "rl":
                        trained[stage_id] = stage_id
                        latest[branch]["policy"] = stage_id
        if recipe.evaluate is not None:
            self._evaluation(recipe, latest, trained)
        if recipe.report is not None and self.stages:
            uses = self._uses(
                [("reporter", ref, ("report", "reporters", i)) for i, ref in enumerate(recipe.report.reporters)],
                recipe,
            )
            self._put(Stage("report", "report", {s: s for s in self.stages}, {}, uses, {"title": recipe.name}))
        if not self.stages:
            self._problem((), "the recipe has no stage", "give it at least `prompts` and `revise`, see docs/tutorial")
        return list(self.stages.values())

    def _variants(self) -> dict[str, Recipe]:
        recipe = self.file.recipe
        if not recipe.branches:
            return {"": recipe}
        variants = {}
        for branch, sections in recipe.branches.items():
            for key in sections:
                if key not in BRANCH_SECTIONS:
                    self._problem(
                        ("branches", branch, key),
                        f"a branch cannot change {key!r}",
                        f"it may change {', '.join(BRANCH_SECTIONS)}",
                    )
            changed = {key: value for key, value in sections.items() if key in BRANCH_SECTIONS}
            try:
                variants[branch] = Recipe.model_validate(
                    {**recipe.model_dump(by_alias=True, exclude={"branches"}), **changed}
                )
            except ValueError as error:
                self._problem(("branches", branch), f"not a valid variant: {error}", "")
        return variants

    def _add(
        self, kind: str, variants: Mapping[str, Recipe], latest: dict[str, dict[str, str]], number: int
    ) -> dict[str, str]:
        """Add the stage of ``kind`` for every branch; branches whose stage is equal share it."""
        made = {}
        for branch, recipe in variants.items():
            stage = self._stage(kind, recipe, latest[branch], number)
            if stage is not None:
                made[branch] = stage
        shared = len({digest(_content(stage)) for stage in made.values()}) == 1 and len(made) == len(variants)
        ids = {}
        for branch, stage in made.items():
            repeated = number > 0 and self.file.recipe.iterate > 1
            tags = [tag for tag in ("" if shared else branch, str(number) if repeated else "") if tag]
            stage_id = f"{kind}[{','.join(tags)}]" if tags else kind
            named = kind == stage.kind
            launch = launch_of(stage.kind, self.file, stage.components, self.problems, named=named)
            self._put(replace(stage, id=stage_id, launch=launch))
            latest[branch][kind] = stage_id
            ids[branch] = stage_id
        return ids

    def _stage(self, kind: str, recipe: Recipe, latest: Mapping[str, str], number: int) -> Stage | None:
        if kind == "prompts":
            if recipe.prompts is None:
                return None
            uses = self._uses([("prompts", recipe.prompts, ("prompts",))], recipe, backend=False)
            if any(use.roles for use in uses):  # it asks a model, so it needs a backend and a worker
                uses = self._uses([("prompts", recipe.prompts, ("prompts",))], recipe, role="generator")
            settings: dict[str, Any] = {"limit": self.limit, "contamination": recipe.contamination}
            return Stage("", kind, {}, self._roles(recipe, uses, {}), uses, settings)
        if kind == "revise":
            if recipe.revise is None or not self._needs(kind, latest, "prompts"):
                return None
            section = recipe.revise
            uses = self._uses(
                [
                    ("critique_template", section.critique_template, ("revise", "critique_template")),
                    ("principle_sampler", section.principle_sampler, ("revise", "principle_sampler")),
                ],
                recipe,
                role="generator",
            )
            settings = section.model_dump(exclude={"critique_template", "principle_sampler"})
            settings["long_prompts"] = recipe.long_prompts
            return Stage("", kind, {"prompts": latest["prompts"]}, self._models(recipe, "generator"), uses, settings)
        if kind == "sft":
            if recipe.sft is None or not self._needs(kind, latest, "revise"):
                return None
            uses = self._uses([("trainer", recipe.sft, ("sft",))], recipe)
            models = self._roles(recipe, uses, self._models(recipe, "sft_base"))
            return Stage("", kind, {"revise": latest["revise"]}, models, uses)
        if kind == "audit":
            if recipe.label is None or recipe.label.audit is None:
                return None
            uses = self._uses([("evaluator", recipe.label.audit, ("label", "audit"))], recipe, role="judge")
            # Nobody of these people has seen its own comparisons: they measure nothing.
            own = any(use.id == "cai-core/judge_audit" and not use.options.get("data") for use in uses)
            if own and by_people(use.id for use in uses):
                self.notes.append("label: these are people's labels, so there is no judge to audit")
                return None
            models = self._roles(recipe, uses, self._models(recipe, "judge"))
            return Stage("", kind, {}, models, uses, {"models": ["judge"]})
        if kind == "pairs":
            if recipe.pairs is None:
                return None
            if recipe.pairs.path is not None:
                return self._pairs_from(recipe.pairs.path)
            if not self._needs(kind, latest, "prompts"):
                return None
            uses = self._uses([], recipe, role="policy")
            policy = self._policy(recipe, latest)
            settings = {"sampling": _sampling(recipe.pairs.sampling), "long_prompts": recipe.long_prompts}
            return Stage("", kind, {"prompts": latest["prompts"]}, {"policy": policy}, uses, settings)
        if kind == "label":
            if recipe.label is None or not self._needs(kind, latest, "pairs"):
                return None
            wanted: list[tuple[str, ComponentRef, tuple[str | int, ...]]] = [
                ("labeler", recipe.label.labeler, ("label", "labeler")),
                ("principle_sampler", recipe.label.principle_sampler, ("label", "principle_sampler")),
            ]
            uses = self._uses(wanted, recipe, backend=False)
            roles = [role for use in uses for role in use.roles]
            if roles:  # people's labels ask no model, so nothing of one is fetched, hashed or waited for
                uses = self._uses(wanted, recipe, role="judge" if "judge" in roles else roles[0])
            models = self._roles(recipe, uses, {})
            return Stage("", kind, {"pairs": latest["pairs"]}, models, uses)
        if kind == "reward":
            if recipe.reward is None:
                return None
            uses = self._uses([("reward_model", recipe.reward, ("reward",))], recipe)
            models = self._reward_models(recipe, uses)
            learns = any(use.trains for use in uses if use.kind == "reward_model")
            if learns and not self._needs(kind, latest, "label"):
                return None
            inputs = {"label": latest["label"]} if "label" in latest else {}
            return Stage("", kind, inputs, models, uses, _part(recipe, heldout=False))
        if kind == "heldout_reward":
            return self._heldout_reward(recipe, latest)
        if recipe.rl is None:
            return None
        uses = self._uses([("rl_algorithm", recipe.rl, ("rl",))], recipe)
        sources = next((use.learns_from for use in uses if use.kind == "rl_algorithm"), ())
        if not all([self._needs(f"rl: {recipe.rl.name}", latest, source, path=("rl",)) for source in sources]):
            return None
        inputs = {source: latest[source] for source in sources}
        if "heldout_reward" in latest:
            inputs["heldout_reward"] = latest["heldout_reward"]
            there = {(use.kind, use.role) for use in uses}
            for use in self._uses([_heldout_model(recipe)], recipe):
                if use.kind == "reward_model":
                    uses = (*uses, replace(use, role="heldout"))
                elif (use.kind, use.role) not in there:
                    uses = (*uses, use)
        models = self._roles(recipe, uses, {"policy": self._policy(recipe, latest)})
        settings = _part(recipe, heldout=False) if "label" in sources else {}
        return Stage("", kind, inputs, models, uses, settings)

    def _heldout_reward(self, recipe: Recipe, latest: Mapping[str, str]) -> Stage | None:
        """A stage of kind ``reward`` on the other part of the labels."""
        if recipe.heldout_reward is None or not self._needs("heldout_reward", latest, "label"):
            return None
        if recipe.rl is None:
            hint = "add `rl:`, or leave heldout_reward out: it takes labels away from `reward`"
            self._problem(("heldout_reward",), "there is no RL to watch with a held-out reward model", hint)
            return None
        uses = self._uses([_heldout_model(recipe)], recipe)
        models = self._reward_models(recipe, uses)
        return Stage("", "reward", {"label": latest["label"]}, models, uses, _part(recipe, heldout=True))

    def _pairs_from(self, path: Path) -> Stage:
        resolved = (self.file.folder / path).resolve()
        settings: dict[str, Any] = {"limit": self.limit}
        if not resolved.is_file():  # the stage is there all the same, so that none after it complains of its lack
            self._problem(("pairs", "path"), f"no such file: {path}", f"looked for {resolved}")
        elif _blank(resolved):
            self._problem(("pairs", "path"), f"the file has no pair: {path}", "give it one JSON object per line")
        else:
            settings["sha256"] = file_sha256(resolved)
        return Stage("", "pairs", {}, {}, (), settings, {"file": str(resolved)})

    def _evaluation(
        self, recipe: Recipe, latest: Mapping[str, Mapping[str, str]], trained: Mapping[str, str]
    ) -> None:
        assert recipe.evaluate is not None
        section = recipe.evaluate
        first = next(iter(latest.values()), {})
        uses = self._uses(
            [("evaluator", ref, ("evaluate", "evaluators", i)) for i, ref in enumerate(section.evaluators)],
            recipe,
            own={kind: getattr(section, kind) for kind in ("labeler", "principle_sampler", "reward_model")},
        )
        evaluators = [use for use in uses if use.kind == "evaluator"]
        reads = {name for use in evaluators for name in use.reads}
        # Evaluators with items of their own need no prompts; where there are some, the answers are in the report.
        if (recipe.prompts is not None or "answers" in reads) and not self._needs("evaluate", first, "prompts"):
            return
        # In the order of training: a stage's snapshots before its result.
        made = {
            snapshot_name(name, step): ModelUse(stage=stage, snapshot=step)
            for name, stage in trained.items()
            for step in (*self._snapshots(stage), 0)
        }
        wanted = section.models or ("base", *made)
        models: dict[str, ModelUse] = {}
        answers = {}
        for name in wanted:
            if name in made:
                models[name] = made[name]
            elif (of := at_step(name)[0]) in trained:
                models[name] = ModelUse(stage=trained[of])
                self._problem(
                    ("evaluate", "models"),
                    f"{name}: {of} keeps no policy of step {at_step(name)[1]}",
                    f"it keeps {', '.join(s for s in made if s.startswith(f'{of}@')) or 'none'}; give its "
                    f"algorithm the option `snapshots: [{at_step(name)[1]}]`",
                )
            elif name in ("base", *recipe.models):
                models[name] = self._models(recipe, name)[name] if name != "base" else self._base(recipe)
            else:
                models[name] = ModelUse(name=name)
            if "prompts" not in first:
                continue
            self._put(
                Stage(
                    f"answers[{name}]",
                    "answers",
                    {"prompts": first["prompts"]},
                    {"policy": models[name]},
                    self._uses([], recipe, role="policy"),
                    {"sampling": _sampling(section.sampling), "long_prompts": recipe.long_prompts},
                )
            )
            answers[name] = f"answers[{name}]"
        if section.best_of is not None:
            name = self._best_of(section.best_of, recipe, first)
            answers[name], wanted = f"answers[{name}]", (*wanted, name)
        inputs = {f"answers:{name}": stage for name, stage in answers.items()}
        if "training" in reads and "prompts" in first:
            inputs["prompts"] = first["prompts"]
        if "chains" in reads:
            inputs |= {stage: stage for known in latest.values() if (stage := known.get("revise"))}
            if not self._needs("an evaluator", first, "revise", path=("evaluate", "evaluators")):
                return
        if any("reward_model" in use.needs and "reward" in use.reads for use in evaluators):
            if "reward" in first:
                inputs["reward"] = first["reward"]
            else:
                self._problem(
                    ("evaluate", "evaluators"),
                    "an evaluator needs a preference model, and the recipe has no `reward` stage",
                    "add `reward: preference`, or leave that evaluator out",
                )
        models = self._roles(recipe, uses, models)
        self._put(Stage("evaluate", "evaluate", inputs, models, uses, {"models": list(wanted)}))

    def _snapshots(self, stage: str) -> tuple[int, ...]:
        """The steps whose policy the algorithm of an RL stage was asked to keep."""
        uses = [use for use in self.stages[stage].components if use.kind == "rl_algorithm"]
        return tuple(step for use in uses for step in use.options.get("snapshots") or ())

    def _best_of(self, n: int, recipe: Recipe, latest: Mapping[str, str]) -> str:
        """Add the answers that the reward picks out of ``n`` of the policy that RL starts from; the name of that."""
        policy = self._policy(recipe, {kind: stage for kind, stage in latest.items() if kind != "policy"})
        name = f"best_of_{n}[{policy.stage or policy.name}]"
        if not self._needs("evaluate", latest, "prompts", path=("evaluate", "best_of")):
            return name
        if "reward" not in latest:
            hint = "add `reward: preference`, or leave best_of out"
            self._problem(("evaluate", "best_of"), "the reward picks the best, and the recipe has no `reward`", hint)
            return name
        uses = self._uses([("reward_model", *_default("reward_model", recipe, ""))], recipe, role="policy")
        assert recipe.evaluate is not None
        if recipe.evaluate.sampling.temperature == 0:
            hint = "sample at a temperature above 0, or leave best_of out"
            self._problem(("evaluate", "best_of"), f"at temperature 0 all {n} samples are the same", hint)
        settings = {
            "sampling": _sampling(recipe.evaluate.sampling),
            "long_prompts": recipe.long_prompts,
            "best_of": n,
        }
        inputs = {"prompts": latest["prompts"], "reward": latest["reward"]}
        models = self._roles(recipe, uses, {"policy": policy})
        self._put(Stage(f"answers[{name}]", "answers", inputs, models, uses, settings))
        return name

    def _uses(
        self,
        wanted: list[tuple[str, ComponentRef, tuple[str | int, ...]]],
        recipe: Recipe,
        *,
        backend: bool = True,
        role: str = "",
        own: Mapping[str, ComponentRef | None] | None = None,
    ) -> tuple[ComponentUse, ...]:
        """Resolve ``wanted``, what those declare to need and the backend. own: kind -> what ``evaluate`` names."""
        uses: list[ComponentUse] = []
        needs: list[str] = []
        for kind, ref, path in wanted:
            use = self.resolver.use(kind, ref, self.file, path, self.problems)
            if use is not None:
                uses.append(use)
                needs += use.needs
        if backend:
            needs.append("backend")
        while needs:
            kind = needs.pop(0)
            if any(use.kind == kind for use in uses):
                continue
            ref, path = _default(kind, recipe, role)
            if chosen := (own or {}).get(kind):
                ref, path = chosen, ("evaluate", kind)
            use = self.resolver.use(kind, ref, self.file, path, self.problems)
            if use is not None:
                uses.append(use)
                needs += use.needs
        if backend:
            uses += self._backends(recipe, uses, role)
        return tuple(uses)

    def _backends(self, recipe: Recipe, uses: list[ComponentUse], own: str) -> list[ComponentUse]:
        """Backends of the roles that components ask for, where they are others than the stage's."""
        found = []
        for role in dict.fromkeys(role for use in uses for role in use.roles if role != own):
            if role in recipe.backends or own in recipe.backends:
                ref, path = _default("backend", recipe, role)
                use = self.resolver.use("backend", ref, self.file, path, self.problems)
                if use is not None:
                    found.append(replace(use, role=role))
        return found

    def _models(self, recipe: Recipe, role: str) -> dict[str, ModelUse]:
        name = recipe.models.get(role, recipe.models.get("base", ""))
        if not name:
            self._problem(("models",), f"no model for the role {role!r}", f"give models.base or models.{role}")
        return {role: self._model(name, ("models", role))}

    def _roles(
        self, recipe: Recipe, uses: tuple[ComponentUse, ...], models: Mapping[str, ModelUse]
    ) -> dict[str, ModelUse]:
        """``models`` of a stage, and those that its components ask for."""
        result = dict(models)
        for role in [role for use in uses for role in use.roles if role not in models]:
            result |= self._models(recipe, role)
        return result

    def _reward_models(self, recipe: Recipe, uses: tuple[ComponentUse, ...]) -> dict[str, ModelUse]:
        """What a reward model is trained from, where it is, and what it asks."""
        trained = any(use.trains for use in uses if use.kind == "reward_model")
        return self._roles(recipe, uses, self._models(recipe, "reward_base") if trained else {})

    def _base(self, recipe: Recipe) -> ModelUse:
        name = recipe.models.get("base") or recipe.models.get("sft_base") or next(iter(recipe.models.values()), "")
        if not name:
            self._problem(("models",), "no model is named", "give models.base")
        return self._model(name, ("models", "base"))

    def _policy(self, recipe: Recipe, latest: Mapping[str, str]) -> ModelUse:
        """The current policy: the last RL result, a model the recipe names, the SFT model, or base."""
        if "policy" in latest:
            return ModelUse(stage=latest["policy"])
        if "policy" in recipe.models:
            return self._model(recipe.models["policy"], ("models", "policy"))
        if "sft" in latest:
            return ModelUse(stage=latest["sft"])
        return self._base(recipe)

    def _model(self, name: str, path: tuple[str | int, ...]) -> ModelUse:
        if not name.startswith("@"):
            return ModelUse(name=name)
        if name[1:] not in self.stages:
            hint = f"stages so far: {', '.join(self.stages) or 'none'}"
            self._problem(path, f"{name} names no stage before it", hint)
            return ModelUse(name=name)
        if self.stages[name[1:]].kind not in ("sft", "rl"):
            self._problem(path, f"the stage {name[1:]} makes no language model", "use @sft or @rl")
        return ModelUse(stage=name[1:])

    def _needs(self, kind: str, latest: Mapping[str, str], other: str, *, path: tuple[str | int, ...] = ()) -> bool:
        if other in latest:
            return True
        hint = f"add `{other}:`"
        self._problem(path or (kind,), f"`{kind}` needs the stage `{other}`, which the recipe does not have", hint)
        return False

    def _put(self, stage: Stage) -> None:
        self.stages.setdefault(stage.id, stage)

    def _problem(self, path: tuple[str | int, ...], message: str, hint: str) -> None:
        self.problems.append(UserError(message, where=self.file.where(path), hint=hint))


def _blank(path: Path) -> bool:
    with path.open("rb") as lines:
        return not any(line.strip() for line in lines)


def _default(kind: str, recipe: Recipe, role: str) -> tuple[ComponentRef, tuple[str | int, ...]]:
    """The recipe's component of a kind that another component needs, or the built-in one. ``role``: of the model that
    the stage asks first."""
    if kind == "backend":
        if role in recipe.backends:
            return recipe.backends[role], ("backends", role)
        return recipe.backend, ("backend",)
    if kind == "trainer":
        return recipe.sft or ComponentRef(name="cai-core/sft"), ("sft",)
    if kind == "reward_model":
        return recipe.reward or ComponentRef(name="cai-core/preference"), ("reward",)
    if kind == "labeler":
        return (recipe.label.labeler if recipe.label else ComponentRef(name="cai-core/logprob")), ("label", "labeler")
    if kind == "principle_sampler":
        sampler = recipe.label.principle_sampler if recipe.label else ComponentRef(name="cai-core/uniform")
        return sampler, ("label", "principle_sampler")
    if kind == "critique_template":
        template = recipe.revise.critique_template if recipe.revise else ComponentRef(name="cai-core/chat")
        return template, ("revise", "critique_template")
    return recipe.prompts or ComponentRef(name="cai-core/builtin"), ("prompts",)


def _part(recipe: Recipe, *, heldout: bool) -> dict[str, Any]:
    """Which labels a stage learns from: settings that a recipe without a held-out reward model does not have."""
    section = recipe.heldout_reward
    return {} if section is None else {"part": {"share": section.share, "heldout": heldout}}


def _heldout_model(recipe: Recipe) -> tuple[str, ComponentRef, tuple[str | int, ...]]:
    assert recipe.heldout_reward is not None
    if recipe.heldout_reward.reward_model is not None:
        return "reward_model", recipe.heldout_reward.reward_model, ("heldout_reward", "reward_model")
    return ("reward_model", *_default("reward_model", recipe, ""))


def _reads_texts(stage: Stage) -> bool:
    """Whether the constitution's texts are part of what it does: also where an evaluator or RL asks a labeler, and of a
    reward that rates without labels, which otherwise depend on them."""
    if stage.kind == "reward":
        return "label" not in stage.inputs
    return stage.kind in _TEXT_STAGES or (
        stage.kind in ("evaluate", "rl")
        and any(use.kind in ("labeler", "principle_sampler") for use in stage.components)
    )


def _sampling(section: SamplingSection) -> dict[str, Any]:
    return section.model_dump()


def _content(stage: Stage) -> dict[str, Any]:
    return {
        "kind": stage.kind,
        "inputs": dict(stage.inputs),
        "models": {role: [use.name, snapshot_name(use.stage, use.snapshot)] for role, use in stage.models.items()},
        "components": [use.identity() for use in stage.components],
        "settings": dict(stage.settings),
    }
