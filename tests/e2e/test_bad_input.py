"""Bad input, as a user would meet it: one clear message with its place, the exit code, a run folder that goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cai_core.pipeline.tables import CHAINS, read_prompts
from cai_core.store.tables import read_table
from cai_core.testing.tiny import tiny_model

RECIPE = """\
schema: 1
name: mine
seed: 3
constitution: single
models: {base: ./model}
prompts: {name: jsonl, path: prompts.jsonl}
revise: {rounds: 1, sampling: {max_new_tokens: 4}}
report: [json]
"""
PROMPTS = [{"id": f"p{n}", "prompt": f"How do I bake {n} breads?", "split": "train"} for n in range(3)]


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, recipe: str = RECIPE, prompts: list[dict[str, object]] | None = None) -> None:
        (self.path / "r.yaml").write_text(recipe)
        lines = [json.dumps(row) for row in (PROMPTS if prompts is None else prompts)]
        (self.path / "prompts.jsonl").write_text("\n".join(lines))

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cai_core.cli.main", "run", "r.yaml", *arguments],
            cwd=self.path,
            capture_output=True,
            text=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        assert "Traceback" not in output
        return output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Folder:
    shutil.copytree(model, tmp_path / "model")
    return Folder(tmp_path)


def test_all_mistakes_of_a_recipe_come_at_once_with_their_lines(folder: Folder) -> None:
    folder.write(RECIPE.replace("rounds: 1", "runds: 1").replace("report: [json]", "repot: [json]"))
    output = folder.run(code=2)
    assert "r.yaml:7: revise.runds: unknown key 'runds'" in output
    assert "Did you mean 'rounds'?" in output
    assert "r.yaml:8: repot: unknown key 'repot'" in output
    assert not (folder.path / "runs").exists()


def test_unknown_components_and_options_are_named_with_near_ones(folder: Folder) -> None:
    recipe = RECIPE.replace("report: [json]", "report: [jsonn]")
    folder.write(recipe.replace("name: jsonl, path", "name: jsonl, kindd: x, path"))
    output = folder.run(code=2)
    assert "jsonn" in output
    assert "Did you mean 'json'" in output
    assert "kindd" in output
    assert "r.yaml:6" in output
    assert "r.yaml:8" in output


def test_missing_files(folder: Folder) -> None:
    folder.write(RECIPE.replace("path: prompts.jsonl", "path: nowhere.jsonl"))
    output = folder.run(code=2)
    assert "nowhere.jsonl" in output
    folder.write(RECIPE.replace("./model", "./no-model"))
    assert "no-model" in folder.run(code=2)
    folder.write(RECIPE.replace("constitution: single", "constitution: nowhere.yaml"))
    assert "nowhere.yaml" in folder.run(code=2)


def test_an_empty_prompt_file(folder: Folder) -> None:
    folder.write(prompts=[])
    output = folder.run(code=2)
    assert "prompts.jsonl" in output
    folder.write()
    assert "Status: ok" in folder.run() or "Status: partial" in folder.run()


def test_a_bad_line_of_prompts_has_its_number(folder: Folder) -> None:
    folder.write(prompts=[*PROMPTS, {"promt": "x"}])
    assert "prompts.jsonl:4" in folder.run(code=2)


def test_a_prompt_longer_than_the_context_and_then_a_mended_one(folder: Folder) -> None:
    long = {"id": "long", "prompt": "bread " * 2000, "split": "train"}
    folder.write(RECIPE + "long_prompts: refuse\n", prompts=[*PROMPTS, long])
    output = folder.run(code=2)
    assert "prompts.jsonl:4" in output
    assert "'long' is longer than the model's context" in output
    assert "512" in output
    turns = [("user", "How is bread made? " * 200), ("assistant", "With flour."), ("user", "And soup?")]
    cut = {"id": "cut", "messages": [{"role": role, "content": text} for role, text in turns], "split": "train"}
    folder.write(prompts=[*PROMPTS, long, cut])
    folder.run()
    (chains,) = (folder.path / ".cai/store/artifacts").glob("revise-*/chains.parquet")
    rows = {row["prompt_id"]: row for row in read_table(chains, CHAINS)}
    assert rows["long"]["failure"]["kind"] == "too_long"
    assert rows["cut"]["turns_cut"] == 2
    assert [turn["content"] for turn in rows["cut"]["prompt"]] == ["And soup?"]
    assert rows["cut"]["answer"]
    (report,) = (folder.path / "runs").glob("mine-*/report*.json")
    assert "1 conversations were longer" in report.read_text()


def test_a_train_prompt_that_resembles_a_held_out_one_stops_the_run(folder: Folder) -> None:
    twin = {"id": "twin", "prompt": "How do I bake... 2 breads", "split": "heldout"}
    folder.write(prompts=[*PROMPTS, twin])
    output = folder.run(code=2)
    assert "p2 ~ twin (100%)" in output
    assert "contamination: drop" in output
    folder.write(RECIPE + "contamination: drop\n", prompts=[*PROMPTS, twin])
    folder.run("--until", "prompts")
    (table,) = (folder.path / ".cai/store/artifacts").glob("prompts-*/prompts.parquet")
    assert [prompt.id for prompt in read_prompts(table)] == ["p0", "p1", "twin"]


def test_a_constitution_without_principles(folder: Folder) -> None:
    (folder.path / "c.yaml").write_text("id: c\nversion: '1'\ntitle: nothing\nprinciples: []\n")
    folder.write(RECIPE.replace("constitution: single", "constitution: c.yaml"))
    output = folder.run(code=2)
    assert "c.yaml" in output
    assert "principle" in output


def test_a_model_folder_without_a_tokenizer(folder: Folder) -> None:
    for path in (folder.path / "model").glob("tokenizer*"):
        path.unlink()
    folder.write()
    output = folder.run(code=2)
    assert "has no tokenizer" in output
    assert "r.yaml:5" in output


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs the right to mount a small file system")
def test_no_space_left_is_told_and_the_run_goes_on_when_there_is_some(folder: Folder) -> None:
    folder.write(RECIPE + "sft: {name: sft, lora: null}\n")
    small = folder.path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=450k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        output = folder.run("--store", "small/store", code=1)
        assert "no space left" in output
        assert "small/store" in output
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        output = folder.run("--store", "small/store")
        assert "Status: " in output
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
