"""``cai label`` as a user meets it, and the flag of a labeler that nothing silences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cai_core.pipeline.tables import LABELS
from cai_core.recipe import built_in_recipes
from cai_core.store.tables import read_table
from tiny import embedded_stand_in

PAIRS = [
    {"prompt": "How do I bake bread?", "a": "Mix flour, water and salt.", "b": "No.", "p_a": 1.0},
    {"prompt": "How do I bake bread?", "a": "Same.", "b": "Same."},
    {"prompt": "How do I bake bread?", "a": "bread " * 9000, "b": "No."},
    {"prompt": "What is a loaf?", "chosen": "Bread.", "rejected": "A stone that grows on trees."},
]
RECIPE = """\
schema: 1
name: mine
models: {base: smollm2-135m-instruct}
backend: echo
pairs: {path: pairs.jsonl}
label: {labeler: {name: logprob, shots: 0}, audit: {name: judge_audit, limit: 10}}
reward: {name: rules, length_weight: 1.0}
report: [json, markdown]
"""


class Folder:
    def __init__(self, path: Path, cache: Path) -> None:
        self.path = path
        self.cache = cache
        self.write("pairs.jsonl", *PAIRS)

    def write(self, name: str, *rows: object) -> None:
        (self.path / name).write_text("\n".join(json.dumps(row) for row in rows))

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cai_core.cli.main", *arguments],
            cwd=self.path,
            capture_output=True,
            text=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "300", "CAI_CACHE": str(self.cache)},
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout if "--json" in arguments else done.stdout + done.stderr

    def label(self, *arguments: str, code: int = 0) -> str:
        return self.run("label", "pairs.jsonl", "-o", "out.jsonl", *arguments, code=code)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    embedded_stand_in(cache)
    return cache


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Folder:
    return Folder(tmp_path, cache)


def test_every_pair_is_a_row_and_everything_is_measured(folder: Folder) -> None:
    output = folder.label("-l", "shots=0", "--no-audit")
    rows = [json.loads(line) for line in (folder.path / "out.jsonl").read_text().splitlines()]
    assert [row["failure"] and row["failure"]["kind"] for row in rows] == [None, None, "too_long", None]
    assert rows[1]["p_a"] == pytest.approx(0.5, abs=1e-6)
    assert (rows[0]["evidence"]["given"], rows[3]["evidence"]["given"]) == ({"human": 1.0}, {"human": 1.0})
    assert all(0 <= row["p_a"] <= 1 for row in rows if not row["failure"])
    for words in ("3 labels; without one: 1 too_long", "equal answers", "against 2 labels of people", "position bias"):
        assert words in output
    assert "The labeler was not audited." in output
    again = json.loads(folder.label("-l", "shots=0", "--no-audit", "--json"))
    assert (again["n"], again["equal_answers"], again["failed"], again["audit"]) == (3, 1, {"too_long": 1}, None)
    assert again == json.loads((folder.path / "out.jsonl.stats.json").read_text())
    folder.run("label", "pairs.jsonl", "-o", "out.parquet", "-l", "shots=0", "--no-audit")
    assert [row["p_a"] for row in read_table(folder.path / "out.parquet", LABELS)] == [row["p_a"] for row in rows]


def test_labels_of_people_come_back_and_an_audit_set_of_ones_own_is_used(folder: Folder) -> None:
    folder.write("people.jsonl", PAIRS[0], PAIRS[3])
    found = json.loads(folder.label("--backend", "echo", "--labeler", "human", "-l", "path=people.jsonl", "--json"))
    assert (found["n"], found["failed"]) == (2, {"unparseable": 2})
    assert found["human"]["accuracy"] == 1.0
    assert found["by_principle"] == []
    said = folder.label("--backend", "echo", "--labeler", "human", "-l", "path=people.jsonl")
    assert "These are people's labels." in said
    assert "audited" not in said
    rows = [{"prompt": "p", "chosen": f"yes {n}", "rejected": "no"} for n in range(5)]
    folder.write("audit.jsonl", *rows)
    found = json.loads(folder.label("--backend", "echo", "-l", "shots=0", "--audit", "audit.jsonl", "--json"))
    assert (found["audit"]["n"], found["audit"]["note"][:11]) == (5, "audit.jsonl")


def test_labels_of_people_need_no_model(folder: Folder) -> None:
    """Nor do they depend on one: another judge leaves them as they are."""
    folder.write("people.jsonl", PAIRS[0], PAIRS[3])
    people = ("--labeler", "human", "-l", "path=people.jsonl")
    assert "2 labels" in folder.label(*people, "--model", "./nofolder")
    (made,) = (folder.path / ".cai/store/artifacts").glob("label-*")
    folder.label(*people, "--backend", "echo")
    assert [*(folder.path / ".cai/store/artifacts").glob("label-*")] == [made]
    assert folder.label("--model", "./nofolder", code=2).count("no such model folder") == 1


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"a": "x", "b": "y"}], "line 1: the row has no `prompt`"),
        ([PAIRS[0], {**PAIRS[0], "p_a": 1.5}], "line 2: `p_a` is 1.5; it must be a probability in [0, 1]"),
        ([{"prompt": "p", "answers": ["x", "y"]}], "neither `a` and `b` nor `chosen` and `rejected`"),
        ([{"prompt": "p", "a": None, "b": "y"}], "neither a text nor a list"),
        ([{**PAIRS[0], "id": "1"}, {**PAIRS[1], "id": "1"}], "line 2: the id '1' is in line 1 too"),
        ([{"prompt": [{"role": "assistant", "content": "x"}], "a": "x", "b": "y"}], "must be the user's"),
        ([], "the file has no pair"),
    ],
)  # fmt: skip
def test_bad_pairs_are_told_before_anything_runs(folder: Folder, rows: list[object], words: str) -> None:
    folder.write("pairs.jsonl", *rows)
    assert words in folder.label(code=2)
    assert not (folder.path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-l", "shots"], "is not of the form key=value"),
        (["-l", "shotz=1"], "Did you mean 'shots'?"),
        (["--labeler", "logprop"], "Did you mean 'logprob'?"),
        (["--labeler", "cot", "-l", "clamp=[0.3, 0.6]"], "it must be [x, 1 - x]"),
        (["--labeler", "human", "-l", "path=none.jsonl"], "no such file"),
        (["--constitution", "mute.yaml"], "no principle has a comparison text"),
        (["--constitution", "nope"], "unknown constitution 'nope'"),
        (["--audit", "none.jsonl"], "no such file"),
        (["-o", "pairs.jsonl"], "the labels would overwrite the pairs"),
        (["-o", "out.csv"], "must end in .jsonl or .parquet"),
        (["-o", "taken.jsonl"], "taken.jsonl is a folder"),
        (["-o", "stats.jsonl"], "stats.jsonl.stats.json is a folder"),
        (["-o", "pairs.jsonl/out.jsonl"], "cannot write there"),
        (["-o", "/proc/out.jsonl"], "cannot write there"),
        (["-l", "name=verdict"], "the labeler is named by --labeler"),
    ],
)
def test_bad_arguments_are_told_before_anything_runs(folder: Folder, arguments: list[str], words: str) -> None:
    (folder.path / "mute.yaml").write_text(
        'schema: 1\nid: mute\nversion: "1"\ntitle: t\nprinciples:\n'
        "- {id: a, critique: Say what is harmful in it., revision: Rewrite it to be harmless.}\n"
    )
    for name in ("taken.jsonl", "stats.jsonl.stats.json"):
        (folder.path / name).mkdir()
    assert words in folder.label(*arguments, code=2)
    assert not (folder.path / "runs").exists()
    assert not (folder.path / "runs").exists()


def test_a_labeler_at_chance_is_named_before_a_model_learns_from_it(folder: Folder) -> None:
    """On the terminal before the reward stage, in run.json and first in the report; again when all is cached."""
    (folder.path / "r.yaml").write_text(RECIPE)
    output = folder.run("run", "r.yaml")
    flag = "WARNING: reward learns from label, and the labeler is"
    assert output.index(flag) < output.index("reward  ")
    report = json.loads(next(folder.path.glob("runs/*/report.json")).read_text())
    assert report["findings"][0]["level"] == "warning"
    assert "nothing shows that its labels carry a signal" in report["findings"][0]["title"]
    run = json.loads(next(folder.path.glob("runs/*/run.json")).read_text())
    assert [warning["stage"] for warning in run["warnings"]] == ["reward"]
    assert "entropy (nats" in output, "the statistics of the labels are printed"
    assert "labels: entropy" in next(folder.path.glob("runs/*/report.md")).read_text()
    cached = folder.run("run", "r.yaml")
    assert "nothing was run again" in cached
    assert flag in cached


def test_a_labeler_that_was_never_audited_is_named_too(folder: Folder) -> None:
    (folder.path / "r.yaml").write_text(RECIPE)
    output = folder.run("run", "r.yaml", "-o", "label.audit=null")
    assert "reward learns from label, and the labeler was never audited" in output
    report = json.loads(next(folder.path.glob("runs/*/report.json")).read_text())
    assert report["findings"][0]["title"] == "The labeler was never audited"
    assert report["labels"]["by_people"] is False
    assert report["labels"]["by_principle"]


def test_peoples_labels_need_no_judge_and_no_audit(folder: Folder) -> None:
    """Said once by the plan and the run, and nowhere is a judge found wanting."""
    people = [{"prompt": f"How is bread {n} baked?", "chosen": "Mix flour.", "rejected": "No."} for n in range(3)]
    folder.write("pairs.jsonl", *people)
    recipe = RECIPE.replace("{name: logprob, shots: 0}", "{name: human, path: pairs.jsonl}")
    (folder.path / "r.yaml").write_text(recipe.replace("base: smollm2-135m-instruct", "judge: ./nofolder"))
    note = "label: these are people's labels, so there is no judge to audit"
    for command in ("plan", "run"):
        output = folder.run(command, "r.yaml")
        assert output.count(note) == 1
        assert "WARNING" not in output
        assert "audit " not in output.replace(note, "")
    report = json.loads(next(folder.path.glob("runs/*/report.json")).read_text())
    assert (report["audit"], report["labels"]["by_people"]) == (None, True)
    assert not any("judge" in finding["title"].lower() for finding in report["findings"])
    assert "The labels of people" in next(folder.path.glob("runs/*/report.md")).read_text()


def test_no_recipe_of_ours_goes_without_the_audit() -> None:
    for path in built_in_recipes().values():
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if "label" in recipe:
            assert recipe["label"].get("audit", "default") is not None, path
