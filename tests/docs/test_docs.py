"""README and docs stay true: links lead somewhere, YAML blocks are valid recipes, named commands exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from cai_core.cli.main import COMMANDS
from cai_core.constitution import load_constitution
from cai_core.pipeline.components import Resolver
from cai_core.pipeline.graph import build_graph
from cai_core.plugins import load_plugins
from cai_core.recipe import built_in_recipes, load_recipe
from cai_core.registry import KINDS, Registry

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_yaml_blocks_that_are_recipes_resolve(page: Path, tmp_path: Path) -> None:
    registry = Registry(load_plugins())
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)):
        data = yaml.safe_load(block)
        if not isinstance(data, dict) or "models" not in data:
            continue
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        (tmp_path / "my-prompts.jsonl").write_text('{"prompt": "Hello?"}\n', encoding="utf-8")
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
