"""Recipes: what a run does, as data. This module checks the shape; the pipeline resolves names to components.

A component is chosen as ``rl: grpo`` or ``rl: {name: grpo, steps: 8}``. Defaults for a component whether or not it is
the chosen one stand under ``options: {rl_algorithm: {grpo: {...}}}``, so that swapping a name is a one-word change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cai_core.errors import UserError, UserErrors
from cai_core.yamlio import Lines, load_yaml, near_name

SCHEMA_VERSION = 1
ROLES = ("generator", "sft_base", "judge", "judge_cot", "reward_base", "policy", "reference")
BACKEND_ROLES = ("generator", "judge", "judge_cot", "policy")
MAX_BYTES = 1_000_000  # a recipe is written by hand; our choice, far above any real one


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ComponentRef(BaseModel):
    """A component by name, with its options; the options are checked by the component's own model."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(min_length=1, description="full id or unique bare name of a component")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class SamplingSection(_Model):
    """How to draw text. The paper samples at T = 1 (section 2) and at most 128 tokens in RL."""

    max_new_tokens: int = Field(128, ge=1, le=32768)
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)


class FiltersSection(_Model):
    """What is left out of the SFT examples, each with a count and a row in ``dropped.parquet``. Our choice: on."""

    repetition: bool = Field(True, description="texts that run in a loop")
    boilerplate: bool = Field(True, description="mostly sentences that a tenth of all texts share, or full of emoji")
    refusal: bool = Field(True, description="refusals that engage with nothing (the paper wants answers not evasive)")
    no_op: bool = Field(True, description="revisions that changed nothing but case and punctuation")
    near_duplicate: bool = Field(True, description="answers that resemble an earlier one (90 % of 5-grams)")


class ReviseSection(_Model):
    """Critique and revision (section 3.1)."""

    rounds: int = Field(4, ge=1, le=16, description="critique-revision rounds per prompt (the paper: 4)")
    critique_template: ComponentRef = ComponentRef(name="cai-core/chat")
    principle_sampler: ComponentRef = ComponentRef(name="cai-core/uniform")
    sampling: SamplingSection = SamplingSection()
    train_on: Literal["all", "last"] = Field(
        "all", description="which revisions become SFT examples (section 3.1: from all revisional steps)"
    )
    helpful_samples: int = Field(
        2,
        ge=0,
        le=16,
        description="answers per helpful prompt mixed into SFT (section 3.2: 2); their share is `sft.mixture`",
    )
    filters: FiltersSection = FiltersSection()


class PairsSection(_Model):
    """Two answers per red-team prompt from the SFT model (section 4.1), or pairs from a file."""

    path: Path | None = Field(
        None, description="JSON lines with prompt, a and b (or chosen and rejected); nothing is generated then"
    )

    sampling: SamplingSection = SamplingSection()


class LabelSection(_Model):
    """AI preference labels, and the audit of the judge that gives them."""

    labeler: ComponentRef = ComponentRef(name="cai-core/logprob")
    principle_sampler: ComponentRef = Field(
        ComponentRef(name="cai-core/uniform"), description="principles of one comparison (section 4.1: one at random)"
    )
    audit: ComponentRef | None = Field(
        ComponentRef(name="cai-core/judge_audit"),
        description="measures the labeler on labelled comparisons; null: no audit",
    )


class HeldoutRewardSection(_Model):
    """A second reward model, on labels that neither `reward` nor RL sees, to watch RL with (Bai et al. 2022a, 4.2)."""

    share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the labelled conversations, chosen by hash, that it alone learns from (Bai et al. 2022a: "
        "half)",
    )
    reward_model: ComponentRef | None = Field(None, description="null: the one under `reward`")


class EvaluateSection(_Model):
    """What is measured on base, SFT and RL model side by side, with held-out prompts."""

    evaluators: tuple[ComponentRef, ...] = Field(
        tuple(ComponentRef(name=f"cai-core/{name}") for name in ("hhh", "refusal", "preference_model", "length")),
        min_length=1,
    )
    sampling: SamplingSection = SamplingSection()
    labeler: ComponentRef | None = Field(None, description="of evaluators that ask one; null: `label.labeler`")
    principle_sampler: ComponentRef | None = Field(
        None, description="of evaluators whose labeler asks one; null: `label.principle_sampler`"
    )
    reward_model: ComponentRef | None = Field(
        None, description="of evaluators with a saved reward model, the component that saved it; null: `reward`"
    )
    models: tuple[str, ...] = Field(
        (), description="which models: base, sft, rl, rl[branch], rl@20 (the policy that the algorithm's "
        "`snapshots` keeps of step 20) or a path; empty: all that the recipe has"
    )
    best_of: int | None = Field(
        None,
        ge=2,
        le=1024,
        description="also what the policy that RL starts from answers where the reward picks the best of n samples",
    )


class ReportSection(_Model):
    """Files for people and programs."""

    reporters: tuple[ComponentRef, ...] = Field(
        tuple(ComponentRef(name=f"cai-core/{name}") for name in ("html", "json")), min_length=1
    )


class LaunchOptions(_Model):
    """In how many processes to train. Never part of a digest: batches are shared out, and stay what they are."""

    processes: int | None = Field(
        None, ge=1, le=1024, description="processes on this machine, on a GPU each; null: as `config` says, else 1"
    )
    config: Path | None = Field(
        None, description="file of `accelerate config`: FSDP or DeepSpeed in place of plain data parallel"
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, Mapping | LaunchOptions):
            return value
        if type(value) is int:
            return {"processes": value}
        raise ValueError(f"a number of processes, or a mapping with `processes` and `config`, not {value!r}")


class LaunchSection(LaunchOptions):
    """How the training stages are launched; `launch: 2` is short for `launch: {processes: 2}`."""

    sft: LaunchOptions | None = Field(None, description="of this stage, where it differs")
    reward: LaunchOptions | None = Field(None, description="of this stage, where it differs")
    rl: LaunchOptions | None = Field(None, description="of this stage, where it differs")


class PluginsSection(_Model):
    """Which plugins may be used."""

    disable: tuple[str, ...] = Field((), description="distributions or plugin ids that are not loaded")
    require: tuple[str, ...] = Field((), description='distributions that must be installed, e.g. "x>=2,<3"')


class Recipe(_Model):
    """A whole run. Every stage is optional: what is not written does not run."""

    schema_version: Literal[1] = Field(1, alias="schema", description="version of the recipe format")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="names the run folder")
    summary: str = Field("", description="one line for people")
    seed: int = Field(0, ge=0, lt=2**63, description="every unit derives its own seed from it")
    constitution: str = Field("harmless", description="name of a built-in constitution, or a YAML file")
    models: dict[str, str] = Field(description="role -> catalog name, hub id, folder or server:NAME; `base` serves all")
    backend: ComponentRef = ComponentRef(name="cai-core/transformers")
    backends: dict[str, ComponentRef] = Field(
        default_factory=dict,
        description="role -> backend of its stages: generator (revise), judge (label, audit), policy (pairs, answers); "
        "judge and judge_cot also where a component of another stage asks them. All other roles: `backend`",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models run; not part of any digest")
    prompts: ComponentRef | None = None
    contamination: Literal["block", "drop", "allow"] = Field(
        "block", description="a train prompt that resembles a held-out one: stop, leave it out, or only report it"
    )
    long_prompts: Literal["cut", "refuse"] = Field(
        "cut", description="a conversation longer than the context: drop its oldest turns and count it, or stop"
    )
    revise: ReviseSection | None = None
    sft: ComponentRef | None = None
    pairs: PairsSection | None = None
    label: LabelSection | None = None
    reward: ComponentRef | None = None
    heldout_reward: HeldoutRewardSection | None = Field(
        None, description="a reward model that RL is watched and stopped with, on labels set apart for it"
    )
    rl: ComponentRef | None = None
    evaluate: EvaluateSection | None = None
    report: ReportSection | None = ReportSection()
    branches: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="several variants from one start: branch -> sections that differ"
    )
    iterate: int = Field(1, ge=1, le=32, description="repeat pairs -> label -> reward -> rl with the current policy")
    options: dict[str, dict[str, dict[str, Any]]] = Field(
        default_factory=dict, description="kind -> component name -> options, used when that component is chosen"
    )
    launch: LaunchSection | None = Field(None, description="training stages in several processes; null: in one")
    plugins: PluginsSection = PluginsSection()

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            value = dict(value)
            if isinstance(value.get("label"), str):
                value["label"] = {"labeler": value["label"]}
            if isinstance(value.get("heldout_reward"), str):
                value["heldout_reward"] = {"reward_model": value["heldout_reward"]}
            for section, field in (("evaluate", "evaluators"), ("report", "reporters")):
                if isinstance(value.get(section), list):
                    value[section] = {field: value[section]}
                elif isinstance(value.get(section), str):
                    value[section] = {field: [value[section]]}
        return value


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A recipe with where it came from: relative paths in it are relative to ``folder``; ``lines`` locates keys."""

    recipe: Recipe
    source: str
    folder: Path
    text: str
    lines: Lines

    def where(self, path: Sequence[str | int]) -> str:
        """file:line: recipe.path of a key, for messages."""
        dotted = ".".join(str(part) for part in path)
        line = None
        for end in range(len(path), 0, -1):
            if (line := self.lines.line(tuple(path[:end]))) is not None:
                break
        return ": ".join(part for part in (f"{self.source}:{line}" if line else self.source, dotted) if part)


def recipe_from(data: Mapping[str, Any], source: str, folder: Path) -> RecipeFile:
    """A recipe made by a program. ``source`` names it in messages; paths in it are relative to ``folder``."""
    text = yaml.safe_dump(dict(data), sort_keys=False)
    return _checked(*load_yaml(text, source), text, source, folder)


def built_in_recipes() -> dict[str, Path]:
    """The recipes shipped with cai-core, by name."""
    folder = Path(__file__).parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read, override and check the shape of a recipe.

    name_or_path: a YAML file, or the name of a built-in recipe. overrides: "key.path=value", values as YAML.
    Raises ``UserErrors`` with every problem found, each with file, line and recipe path.
    """
    path = _find(name_or_path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the recipe: {error.strerror}", where=str(path)) from error
    if len(raw) > MAX_BYTES:
        raise UserError(f"the recipe has {len(raw)} bytes; at most {MAX_BYTES} are read", where=str(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the recipe is not UTF-8 (byte {error.start})", where=str(path)) from error
    data, lines = load_yaml(text, str(path))
    if not isinstance(data, dict):
        raise UserError("a recipe is a mapping of keys to values", where=str(path), hint="see docs/tutorial")
    for override in overrides:
        _override(data, override)
    # A built-in recipe has no files beside it: paths in overrides are the user's.
    return _checked(data, lines, text, str(path), Path() if name_or_path in built_in_recipes() else path.parent)


def _checked(data: dict[str, Any], lines: Lines, text: str, source: str, folder: Path) -> RecipeFile:
    # only to locate keys in messages while the recipe itself is not valid yet
    holder = RecipeFile(Recipe.model_construct(name="", models={}), source, folder, text, lines)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise UserErrors([_problem(holder, item) for item in error.errors()]) from None
    problems = []
    for section, known in (("models", ("base", *ROLES)), ("backends", BACKEND_ROLES)):
        for role in getattr(recipe, section):
            if role not in known:
                hint = f"{near_name(role, known)} Roles: {', '.join(known)}.".strip()
                problems.append(UserError(f"unknown role {role!r}", where=holder.where((section, role)), hint=hint))
    if problems:
        raise UserErrors(problems)
    return RecipeFile(recipe, source, folder, text, lines)


def _find(name_or_path: str) -> Path:
    built_in = built_in_recipes()
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.parent != Path("."):
        if not path.is_file():
            raise UserError("no such recipe file", where=name_or_path, hint=f"built in: {', '.join(built_in)}")
        return path
    if name_or_path in built_in:
        return built_in[name_or_path]
    hint = f"{near_name(name_or_path, built_in)} Built in: {', '.join(built_in)}; or give the path of a YAML file."
    raise UserError(f"no recipe called {name_or_path!r}", hint=hint.strip())


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"-o {override!r} is not of the form key=value", hint="for example -o revise.rounds=1")
    parsed, _ = load_yaml(value or "null", f"-o {key}")
    target = data
    *parents, last = key.split(".")
    for part in parents:
        below = target.get(part)
        field = {"evaluate": "evaluators", "report": "reporters"}.get(part) if target is data else None
        if field and isinstance(below, str | list):
            below = {field: [below] if isinstance(below, str) else below}
        elif isinstance(below, str):
            short = {"label": "labeler", "heldout_reward": "reward_model"} if target is data else {}
            below = {short.get(part, "name"): below}
        elif below is None:
            below = {}
        if not isinstance(below, dict):
            raise UserError(f"-o {key}: {part} is not a mapping in the recipe")
        target[part] = below
        target = below
    target[last] = parsed


def _problem(holder: RecipeFile, item: Any) -> UserError:
    path = tuple(item["loc"])
    message, hint = str(item["msg"]).removeprefix("Value error, "), ""
    if item["type"] == "extra_forbidden":
        known = _fields(path[:-1])
        message = f"unknown key {path[-1]!r}"
        hint = near_name(str(path[-1]), known) or f"known keys: {', '.join(known)}"
    elif item["type"] == "missing":
        message = f"{path[-1]!r} is missing"
        path = path[:-1] or path
    return UserError(message, where=holder.where(path), hint=hint)


def _fields(path: Sequence[str | int]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "revise": ReviseSection,
        "filters": FiltersSection,
        "pairs": PairsSection,
        "label": LabelSection,
        "heldout_reward": HeldoutRewardSection,
        "evaluate": EvaluateSection,
        "report": ReportSection,
        "launch": LaunchSection,
        "plugins": PluginsSection,
    }
    model: type[BaseModel] = Recipe
    if path:
        last = path[-1] if path[-1] in ("sampling", "filters") else path[0]
        model = SamplingSection if last == "sampling" else sections.get(str(last), Recipe)
    return [field.alias or name for name, field in model.model_fields.items()]
