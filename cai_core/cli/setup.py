"""What ``run`` and ``plan`` share: from arguments to a plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cai_core.errors import UserError, UserErrors
from cai_core.pipeline.plan import Plan, make_plan
from cai_core.plugins import load_plugins
from cai_core.recipe import RecipeFile, load_recipe
from cai_core.registry import Registry


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE, -o, --store, --runs, --limit, --strict-plugins and --retry-failed."""
    for decorate in reversed(
        (
            click.argument("recipe"),
            click.option(
                "-o",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help="Change a key of the recipe, e.g. revise.rounds=1.",
            ),
            click.option("--store", type=click.Path(path_type=Path), default=".cai/store", show_default=True),
            click.option(
                "--runs",
                type=click.Path(path_type=Path),
                default="runs",
                show_default=True,
                help="Folder of run folders.",
            ),
            click.option(
                "--limit", type=click.IntRange(min=1), help="Use at most this many prompts of each kind and split."
            ),
            click.option("--strict-plugins", is_flag=True, help="A plugin that does not load is fatal."),
            click.option(
                "--retry-failed",
                is_flag=True,
                help="Ask again for what failed for a reason of the machine or server (infra), and for nothing else.",
            ),
        )
    ):
        command = decorate(command)
    return command


def prepare(
    recipe: str,
    overrides: tuple[str, ...],
    store: Path,
    runs: Path,
    limit: int | None,
    strict_plugins: bool,
    retry_failed: bool,
) -> Plan:
    """Load recipe and plugins, and plan."""
    return planned(load_recipe(recipe, overrides), store, runs, limit, strict_plugins, retry_failed)


def planned(
    file: RecipeFile,
    store: Path,
    runs: Path,
    limit: int | None,
    strict_plugins: bool = False,
    retry_failed: bool = False,
) -> Plan:
    """The plan of a recipe with the plugins that it allows."""
    plugins = load_plugins(disable=file.recipe.plugins.disable, strict=strict_plugins)
    _require(file)
    return make_plan(file, Registry(plugins), store, runs, limit=limit, retry_failed=retry_failed)


def _require(file: RecipeFile) -> None:
    from importlib import metadata

    from packaging.requirements import InvalidRequirement, Requirement

    problems: list[UserError] = []
    for index, text in enumerate(file.recipe.plugins.require):
        where = file.where(("plugins", "require", index))
        try:
            requirement = Requirement(text)
            installed = metadata.version(requirement.name)
        except InvalidRequirement as error:
            problems.append(UserError(f"{text!r} is not a requirement: {error}", where=where, hint='like "x>=2,<3"'))
        except metadata.PackageNotFoundError:
            problems.append(UserError(f"{text} is not installed", where=where, hint=f"pip install '{text}'"))
        else:
            if not requirement.specifier.contains(installed, prereleases=True):
                problems.append(UserError(f"{requirement.name} {installed} is installed, not {text}", where=where))
    if problems:
        raise UserErrors(problems)



