"""The first tutorial, command by command, on a tiny model in the place of the embedded one."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import embedded_stand_in

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs/tutorial/first-run.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The `cai` commands that a reader types, in order; `make quickstart` is the first of them, in effect."""
    blocks = re.findall(r"```(?:console|bash)\n(.*?)```", TUTORIAL, flags=re.S)
    lines = [line.removeprefix("$ ").removeprefix(".venv/bin/") for line in "\n".join(blocks).splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("cai ")]


class Reader:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def types(self, line: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cai_core.cli.main", *shlex.split(line)[1:]],
            cwd=self.folder,
            env={**os.environ, "CAI_CACHE": str(self.folder / "cache"), "NO_COLOR": "1", "COLUMNS": "160"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    embedded_stand_in(folder / "cache")
    reader = Reader(folder)
    assert commands()[0] == "cai run quickstart"
    output = reader.types("cai run quickstart")
    assert re.search(r"Report: runs/quickstart-\w+/report\.html", output)
    return reader


@pytest.mark.timeout(600)
def test_every_command_of_the_tutorial_works(reader: Reader) -> None:
    outputs = {line: reader.types(line) for line in commands()[1:]}
    assert "0 to run" in outputs["cai plan quickstart"], "every stage is reused, as the text says"
    reuse = {line.split()[0]: line for line in outputs["cai plan quickstart -o label.labeler.shots=2"].splitlines()}
    assert "reuse" in reuse["pairs"]
    assert "shots" in reuse["label"]
    swap = {line.split()[0]: line.split()[1] for line in outputs["cai plan quickstart -o rl=best_of_n"].splitlines()}
    assert [stage for stage in ("revise", "sft", "audit", "pairs", "label", "reward") if swap[stage] != "reuse"] == []
    assert swap["rl"] == "run"


@pytest.mark.timeout(600)
def test_the_readers_own_recipe_runs(reader: Reader) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TUTORIAL, flags=re.S)
    (reader.folder / "mine.yaml").write_text(block)
    prompts = [{"prompt": f"How do I bake {n} breads?", "split": "heldout" if n > 4 else "train"} for n in range(8)]
    (reader.folder / "my-prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    assert "Status: " in reader.types("cai run mine.yaml")
