"""README and docs stay true: links lead somewhere, YAML blocks are valid recipes, named commands exist, and generated
pages are what the code says."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from cai_core.cli.main import COMMANDS
from cai_core.constitution import load_constitution
from cai_core.pipeline.components import Resolver
from cai_core.pipeline.graph import build_graph
from cai_core.plugins import load_plugins
from cai_core.recipe import built_in_recipes, load_recipe
from cai_core.registry import KINDS, Registry
from cai_core.schema import DRAFT, SLOTS, recipe_schema

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """As an editor gets it: through JSON."""
    found = json.loads(json.dumps(recipe_schema(Registry(load_plugins())), allow_nan=False))
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["$schema"] == DRAFT
    return dict(found)


def wrong(schema: dict[str, Any], recipe: Any) -> list[str]:
    return [str(error.message) for error in jsonschema.Draft202012Validator(schema).iter_errors(recipe)]


RECIPES = sorted([*(ROOT / "cai_core/recipes").glob("*.yaml"), *(ROOT / "docs").rglob("recipe*.yaml")])
OTHERS = ("cai_engages", "ordinal", "above_mean")
"""Components of the examples in the docs; they are not installed where the docs are checked."""


def with_examples(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as it is when the packages of the docs are installed: their names are known, with any options."""
    text = json.dumps(schema)
    known = json.loads(text)
    for kind in ("labeler", "rl_algorithm"):
        for name in OTHERS:
            known["$defs"][f"kind.{kind}"]["then"]["oneOf"].append({"const": name})
            known["$defs"][f"kind.{kind}"]["else"]["properties"]["name"]["oneOf"].append({"const": name})
    return dict(known)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_recipe_validates_against_the_schema(path: Path, schema: dict[str, Any]) -> None:
    assert wrong(with_examples(schema), yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_yaml_blocks_validate_against_the_schema(page: Path, schema: dict[str, Any]) -> None:
    """Whole recipes as they are; parts of a recipe with what every recipe has."""
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
        data = yaml.safe_load(block)
        if set(data) <= schema["properties"].keys():
            assert wrong(with_examples(schema), {"name": "part", "models": {"base": "x"}, **data}) == [], block
        else:
            assert "principles" in data, f"neither a recipe nor a constitution:\n{block}"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rl": "grpoo"}, "'grpoo'"),
        ({"rl": {"name": "grpo", "stepz": 1}}, "'stepz' was unexpected"),
        ({"rl": {"name": "grpo", "steps": 0}}, "0 is less than the minimum of 1"),
        ({"rl": {"steps": 1}}, "'name' is a required property"),
        ({"label": {"labeler": {"name": "logprob", "shots": -1}}}, "not valid under any"),
        ({"reward": {"name": "rules", "patterns": [{"regex": "x", "wight": 1}]}}, "'wight' was unexpected"),
        ({"options": {"labeler": {"logprob": {"shotz": 1}}}}, "'shotz' was unexpected"),
        ({"models": {"bse": "x"}}, "'bse' was unexpected"),
        ({"nope": 1}, "'nope' was unexpected"),
        ({"backend": {"name": "echo", "model": "x"}}, "'model' was unexpected"),
    ],
)
def test_the_schema_finds_what_the_command_line_would(change: Any, says: str, schema: dict[str, Any]) -> None:
    recipe = yaml.safe_load((ROOT / "cai_core/recipes/quickstart.yaml").read_text(encoding="utf-8"))
    assert any(says in message for message in wrong(schema, {**recipe, **change})), wrong(schema, {**recipe, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"rl": "grpo"},
        {"rl": "cai-core/grpo"},
        {"rl": None},
        {"label": "logprob"},
        {"label": {"audit": None}},
        {"evaluate": ["hhh", {"name": "length"}]},
        {"report": "json"},
        {"prompts": "jsonl", "options": {"prompts": {"jsonl": {"path": "x.jsonl"}}}},
        {"reward": {"name": "rules", "patterns": [{"regex": "x", "weight": 1}]}},
        {"sft": {"name": "sft", "lora": None}},
    ],
)
def test_the_schema_takes_what_the_command_line_takes(change: Any, schema: dict[str, Any]) -> None:
    recipe = yaml.safe_load((ROOT / "cai_core/recipes/quickstart.yaml").read_text(encoding="utf-8"))
    assert wrong(schema, {**recipe, **change}) == []


def test_the_schema_knows_every_component_with_its_summary(schema: dict[str, Any]) -> None:
    assert "ComponentRef" not in json.dumps(schema), "every place that names a component has a kind"
    assert set(SLOTS.values()) == set(KINDS)
    for offer in Registry(load_plugins()).offers():
        names = schema["$defs"][f"kind.{offer.kind}"]["then"]["oneOf"]
        assert {"const": offer.id, "description": offer.component.summary} in names


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["hooks", "components"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    """`python docs/generate.py` writes them."""
    written = (ROOT / f"docs/reference/{name}.md").read_text(encoding="utf-8")
    assert written == getattr(generator(), f"{name}_page")()


def test_what_has_no_prose_cannot_be_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    from cai_core import hookspecs
    from cai_core.types.labeler import Labeler
    from cai_plugins.labelers.plugin import LogprobOptions

    pages = generator()
    hooks = (hookspecs.cai_register_labelers, Labeler.label)
    for thing, page in (*((hook, "hooks") for hook in hooks), (LogprobOptions, "components")):
        with monkeypatch.context() as patch:
            patch.setattr(thing, "__doc__", "")
            with pytest.raises(pages.Undocumented):
                getattr(pages, f"{page}_page")()
    with monkeypatch.context() as patch:
        patch.setattr(LogprobOptions.model_fields["swap"], "description", "")
        with pytest.raises(pages.Undocumented, match="swap"):
            pages.components_page()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_yaml_blocks_that_that_are_recipes_resolve(page: Path, tmp_path: Path) -> None:
    registry = Registry(load_plugins())
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)):
        data = yaml.safe_load(block)
        if not isinstance(data, dict) or "models" not in data:
            continue
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        (tmp_path / "my-prompts.jsonl").write_text('{"prompt": "Hello?"}\n', encoding="utf-8")
        (tmp_path / "pairs.jsonl").write_text('{"prompt": "Hello?", "a": "Yes.", "b": "No."}\n', encoding="utf-8")
        file = load_recipe(str(path))
        build_graph(file, Resolver(registry), load_constitution(file.recipe.constitution, file.folder))


@pytest.mark.parametrize("name", sorted(built_in_recipes()))
def test_built_in_recipes_resolve(name: str) -> None:
    file = load_recipe(name)
    build_graph(file, Resolver(Registry(load_plugins())), load_constitution(file.recipe.constitution, file.folder))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_text_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return
    blocks = re.findall(r"```(?:console|bash)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    for line in "\n".join(blocks).splitlines():
        match = re.match(r"\$? ?(?:\.venv/bin/)?cai ([a-z]+)", line)
        if match:
            assert match[1] in COMMANDS, f"{page.name}: {line}"


def test_readme_names_every_built_in_component() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    registry = Registry(load_plugins())
    for kind in KINDS:
        for offer in registry.offers(kind):
            if offer.id.startswith("cai-core/"):
                assert f"`{offer.component.name}`" in readme, f"{kind} {offer.component.name}"


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_dependencies_have_a_tested_version() -> None:
    """Everything the project depends on is pinned in constraints.txt, so that two machines install the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=!~ \[]", text)[0].lower().replace("_", "-") for text in wanted}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {pin.split("==")[0].lower().replace("_", "-") for pin in pins if "==" in pin}
    assert names <= pinned, names - pinned
