"""``cai plugins new``: a package with one component that works, and tests of its contract."""

from __future__ import annotations

import inspect
import keyword
import re
from pathlib import Path
from string import Template
from textwrap import dedent

import click

from cai_core.errors import CAIError, UserError

PYPROJECT = Template("""\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "$name"
version = "0.1.0"
description = "A $kind for cai-core"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["cai-core", "pydantic>=2.10"]

[project.optional-dependencies]
test = ["cai-core[testing]"]

[project.entry-points.cai_core]
$package = "$package.plugin"

[tool.hatch.build.targets.wheel]
packages = ["src/$package"]

[tool.ruff]
line-length = 120
src = ["src"]
""")

README = Template("""\
# $name

The $kind `$component` for cai-core, Constitutional AI from a recipe.

    pip install -e '.[test]'
    pytest                                  # the contract of the kind, see cai_core.testing
    cai plugins show $component --kind $kind
    cai run quickstart -o $where

`src/$package/plugin.py` is an example that works: change what it does, its options and its summary. Raise `revision` in
`Component` whenever the same options give other results.
""")

PLUGIN = Template('''\
"""The $kind `$component`.

cai-core finds this module by its entry point in pyproject.toml; `cai_core.hookspecs` says what it may hold.
"""

$imports
CAI_HOOKSPEC_VERSION = $version

$body
''')

TEST = Template('''\
"""The contract of a $kind; see `cai_core.testing`."""

${typing}from cai_core.testing import $base


class Test$title($base):
    component_id = "$name/$component"
$settings''')

WHERE = {
    "backend": "backend=$component",
    "prompts": "prompts=$component",
    "principle_sampler": "revise.principle_sampler=$component",
    "critique_template": "revise.critique_template=$component",
    "labeler": "label.labeler=$component",
    "trainer": "sft=$component",
    "reward_model": "reward=$component",
    "rl_algorithm": "rl=$component",
    "evaluator": "'evaluate.evaluators=[$component]'",
    "reporter": "'report=[$component]'",
}
"""Kind -> how a recipe chooses its component."""

SETTINGS = {
    "trainer": '{"learning_rate": 0.05}',
    "rl_algorithm": '{"learning_rate": 0.3, "steps": 60, "samples": 16, "max_new_tokens": 12}',
}
"""Kind -> what the example needs in order to learn something on the tiny model of the tests."""


@click.command("new")
@click.argument("name")
@click.option("--kind", required=True, metavar="KIND", help=f"What it is to be: {', '.join(WHERE)}.")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default=".", help="Folder to make it in.")
def command(name: str, kind: str, into: Path) -> None:
    """Make the package NAME with one component of a kind: it installs, passes its tests and works in a recipe."""
    folder = write_package(name, kind, into)
    component = name.replace("-", "_")
    click.echo(f"Wrote {folder}. Next:\n")
    click.echo(f"  pip install -e '{folder}[test]'")
    click.echo(f"  pytest {folder}")
    click.echo(f"  cai run quickstart -o {Template(WHERE[kind]).substitute(component=component)}")


def write_package(name: str, kind: str, into: Path) -> Path:
    """Write the package to the new folder ``into/name`` and return it. Raises ``UserError`` on a bad name or kind, or
    when the folder is there."""
    from cai_core.plugins import KINDS
    from cai_core.yamlio import near_name

    if kind not in KINDS:
        raise UserError(f"unknown kind '{kind}'", hint=near_name(kind, KINDS) or f"Kinds: {', '.join(KINDS)}.")
    package = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 64 or keyword.iskeyword(package):
        raise UserError(f"'{name}' is no name for a package", hint="Use a-z, 0-9 and '-', like 'my-labeler'.")
    if package in ("cai_core", "cai_plugins"):
        raise UserError(f"'{name}' is cai-core's own name", hint="Choose another one.")
    folder = into / name
    if folder.exists():
        raise UserError("the folder exists already", where=str(folder), hint="Choose another name, or remove it.")
    imports, body = _example(kind, package)
    from cai_core.hookspecs import HOOKSPEC_VERSION

    values = {
        "name": name,
        "package": package,
        "component": package,
        "kind": kind,
        "title": "".join(part.capitalize() for part in name.split("-")),
        "base": f"{KINDS[kind].protocol.__name__}Conformance",
        "typing": "from typing import ClassVar\n\n" if kind in SETTINGS else "",
        "settings": f"    options: ClassVar = {SETTINGS[kind]}\n" if kind in SETTINGS else "",
        "where": Template(WHERE[kind]).substitute(component=package),
        "version": str(HOOKSPEC_VERSION),
        "imports": imports,
        "body": body,
    }
    files = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"src/{package}/plugin.py": PLUGIN,
        "tests/test_contract.py": TEST,
    }
    for path, template in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(template.substitute(values), encoding="utf-8")
    (folder / f"src/{package}/__init__.py").write_text(f'"""A {kind} for cai-core."""\n', encoding="utf-8")
    return folder


def _example(kind: str, component: str) -> tuple[str, str]:
    """The example of the kind's hook: its imports, and the rest with the component's new name."""
    from cai_core import hookspecs
    from cai_core.plugins import KINDS

    document = inspect.getdoc(getattr(hookspecs, KINDS[kind].hook)) or ""
    code = dedent(document.partition("Example::\n")[2]).strip()
    if not code:
        raise CAIError("the examples are not there: Python runs with -OO", hint="Run it without -OO.")
    imports, gap, body = code.partition("\n\n\n")
    body = re.sub(r'Component\("[a-z_]+"', f'Component("{component}"', body)
    return imports + "\n", gap.lstrip("\n") + "\n" + body
