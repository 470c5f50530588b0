"""What a command imports, judged by ``sys.modules`` of a fresh interpreter and never by a clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl", "datasets", "numpy", "evaluate", "peft", "accelerate", "scipy", "pyarrow")

PROGRAM = """
import json, sys
from cai_core.cli.main import main
code = main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.write("\\nMODULES " + json.dumps([code, sorted(sys.modules)]))
"""


def modules_after(*arguments: str) -> set[str]:
    """Top-level names and full names of all modules that the command imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CAI_DEBUG": "1"},
        check=True,
    )
    code, modules = json.loads(done.stderr.rpartition("MODULES ")[2])
    assert code == 0, done.stderr
    assert done.stdout, "the command printed something"
    return {name.partition(".")[0] for name in modules} | set(modules)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_next_to_nothing(arguments: list[str]) -> None:
    found = modules_after(*arguments)
    unwanted = {*HEAVY, "pydantic", "pluggy", "yaml", "rich", "cai_plugins", "cai_core.plugins", "cai_core.pipeline"}
    assert not found & unwanted


@pytest.mark.parametrize("arguments", [["constitution", "list"], ["constitution", "show", "harmless"]])
def test_an_auditor_needs_no_plugin(arguments: list[str]) -> None:
    assert not modules_after(*arguments) & {*HEAVY, "pydantic", "pluggy", "rich", "cai_plugins"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["plugins", "list"],
        ["plugins", "list", "--json"],
        ["plugins", "show", "uniform"],
        ["models", "list"],
        ["schema"],
    ],
)
def test_listing_imports_no_heavy_library(arguments: list[str]) -> None:
    assert not modules_after(*arguments) & set(HEAVY)


@pytest.mark.parametrize("command", ["run", "plan", "report", "models"])
def test_help_of_a_command_imports_no_heavy_library(command: str) -> None:
    assert not modules_after(command, "--help") & (set(HEAVY) - {"pyarrow"})


def test_importing_the_package_imports_nothing_else() -> None:
    program = "import sys; before = set(sys.modules); import cai_core; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['__future__', 'cai_core']"
