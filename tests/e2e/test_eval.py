"""``cai eval`` as a user meets it: evaluators on models that no recipe made."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cai_core.cli.main import main
from cai_core.pipeline.tables import EVAL_ROWS
from cai_core.store.tables import read_table
from cai_core.testing.tiny import tiny_model
from servers import FaultServer

ECHO = ("server:x", "--backend", "echo")


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cai_core.cli.main", "eval", *arguments],
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "300"},
        )

    def eval(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        output, errors = process.communicate()
        assert process.returncode == code, output + errors
        assert "Traceback" not in output + errors
        return output if "--json" in arguments else output + errors

    def write(self, name: str, *rows: object) -> str:
        (self.path / name).write_text("\n".join(json.dumps(row) for row in rows))
        return name


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def test_a_folder_is_evaluated_alone_and_nothing_is_asked_twice(folder: Folder, model: Path) -> None:
    said = folder.eval(str(model), "--suite", "hhh", "--limit", "4", "-o", "out")
    assert f"hhh, {model}: 4 scored, 0 unscored (the model gave no answer), 0 failed" in said
    assert "Wilson 95 %" in said
    rows = [json.loads(line) for line in (folder.path / "out/rows.jsonl").read_text().splitlines()]
    assert rows == list(read_table(folder.path / "out/rows.parquet", EVAL_ROWS))
    (metric, *_) = json.loads((folder.path / "out/metrics.json").read_text())
    assert metric["value"] == sum(row["values"]["right"] for row in rows) / 4
    assert metric["per_item"].keys() == {row["id"] for row in rows}
    assert not [*(folder.path / ".cai/store/artifacts").glob("answers-*")], "it reads no answers, so none are made"
    assert "reused" in folder.eval(str(model), "--suite", "hhh", "--limit", "4")


def test_what_is_scored_stays_when_only_the_choice_of_items_changes(folder: Folder) -> None:
    """Counted at the server: a unit costs a call per option and order."""
    ends = {"corrects": [" (A)"], "incorrects": [" (B)"]}
    asks = "Is {} odd? Options:\n (A) yes\n (B) no\n\nThe answer is:"
    items = [{"id": n, "prompt": asks.format(n), **ends} for n in range(12)]
    folder.write("d.jsonl", *items)
    with FaultServer() as server:
        backend = f"{{name: openai, base_url: '{server.url}'}}"

        def asked(*options: str) -> int:
            before = len(server.calls)
            given = [part for option in ("data=d.jsonl", *options) for part in ("--option", option)]
            found = folder.eval("server:m", "--suite", "multiple_choice", "--backend", backend, "--json", *given)
            assert json.loads(found)["counts"][0]["scored"] > 0
            return len(server.calls) - before

        assert asked("limit=4") == 4 * 4
        assert asked("limit=6") == 2 * 4, "the first four are scored already"
        assert asked("limit=6", "title=again", "leaked=d.jsonl") == 0, "rows are summed up in another way"
        assert asked("limit=6", "both_orders=false") == 6 * 2, "another way of scoring"
        folder.write("d.jsonl", *items, {**items[0], "id": "new"})
        assert asked() == 7 * 4, "those that nobody asked, in a longer file"


def test_several_suites_share_the_answers_to_prompts_of_ones_own(folder: Folder) -> None:
    folder.write("p.jsonl", *({"prompt": f"Say {n}.", "kind": "helpful"} for n in range(5)))
    found = json.loads(
        folder.eval(*ECHO, "--suite", "refusal", "--suite", "length", "--prompts", "p.jsonl", "-o", "out", "--json")
    )
    assert {(c["evaluator"], c["scored"]) for c in found["counts"]} == {("refusal", 5), ("length", 5)}
    assert len([*(folder.path / ".cai/store/artifacts").glob("answers-*")]) == 1
    assert found["status"] == "ok"


def test_models_are_rated_against_each_other(folder: Folder) -> None:
    folder.write("p.jsonl", *({"prompt": f"Say {n}.", "kind": "red_team"} for n in range(6)))
    several = ("server:x", "server:y", "--suite", "pairwise", "--prompts", "p.jsonl", "--option", "anchor=server:y")
    found = json.loads(folder.eval(*several, "--backend", "{name: echo, bias: longer}", "--json", "--temperature", "0"))
    elo = {m["model"]: m for m in found["metrics"] if m["id"] == "pairwise.elo.harmless"}
    assert (elo["server:y"]["value"], elo["server:x"]["value"]) == (0.0, 0.0), "echo answers both alike: ties"
    assert elo["server:x"]["low"] < 0 < elo["server:x"]["high"]
    assert found["counts"] == [{"evaluator": "pairwise", "model": "server:y", "scored": 6, "unscored": 0, "failed": {}}]


def test_prompts_without_an_answer_are_counted_and_can_be_asked_again(folder: Folder) -> None:
    folder.write("p.jsonl", *({"prompt": f"Say {n}.", "kind": "helpful"} for n in range(12)))
    some = ("server:x", "--suite", "length", "--prompts", "p.jsonl", "--backend", "{name: echo, fail_every: 3}")
    found = json.loads(folder.eval(*some, "--json"))
    (counts,) = found["counts"]
    assert 0 < counts["unscored"] < 12
    assert counts["scored"] + counts["unscored"] == 12
    assert found["status"] == "partial"
    assert f"{counts['unscored']} held-out prompts have no answer" in folder.eval(*some, "--retry-failed")


def test_a_kill_loses_nothing_that_was_recorded(folder: Folder) -> None:
    slow = ("server:x", "--suite", "hhh", "--backend", "{name: echo, delay_s: 0.02}", "--json")
    first = folder.start(*slow)
    ledger = folder.path / ".cai/store/ledger/evaluate.sqlite"
    for _ in range(6000):
        if ledger.exists() and _rows(ledger) >= 20:
            break
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = _rows(ledger)
    assert before < 80, "it was killed in the middle"
    found = json.loads(folder.eval(*slow))
    assert found["counts"][0]["scored"] == 80
    other = Folder(folder.path / "other")
    other.path.mkdir()
    whole = json.loads(other.eval(*slow))
    assert found["metrics"] == whole["metrics"]


def _rows(ledger: Path) -> int:
    try:
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
            return int(connection.execute("select count(*) from units").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((*ECHO, "--suite", "hh"), 2, "Did you mean 'hhh'?"),
        (("nope", "--suite", "hhh"), 2, "unknown model 'nope'"),
        ((*ECHO, "server:x", "--suite", "hhh"), 2, "a model is given twice"),
        ((*ECHO, "--suite", "hhh", "--suite", "hhh"), 2, "a suite is given twice"),
        ((*ECHO, "--suite", "hhh", "--option", "limt=3"), 2, "Did you mean 'limit'?"),
        ((*ECHO, "--suite", "hhh", "--option", "limit"), 2, "is not of the form key=value"),
        ((*ECHO, "--suite", "hhh", "--option", "refusal.limit=3"), 2, "'refusal' is none of the suites"),
        ((*ECHO, "--suite", "hhh", "--option", "name=refusal"), 2, "a suite is named by --suite"),
        ((*ECHO, "--suite", "hhh", "--option", "data=none.jsonl"), 2, "no such file"),
        ((*ECHO, "--suite", "hhh", "--prompts", "p.jsonl"), 2, "no answers are read by hhh"),
        ((*ECHO, "--suite", "length", "--prompts", "p.jsonl"), 2, "no such file"),
        ((*ECHO, "--suite", "hhh", "-o", "taken"), 2, "cannot write there"),
        ((*ECHO, "--suite", "preference_model"), 2, "needs a preference model"),
        (("server:x", "--suite", "hhh", "--backend", "{name: echo, fail_every: 1}"), 1, "nothing could be scored"),
        (("--suite", "hhh"), 2, "Missing argument"),
    ],
)
def test_bad_input_is_told(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["eval", *arguments]) == code
    said = capsys.readouterr()
    assert words in said.out + said.err


RECIPE = """\
schema: 1
name: mine
models: {base: MODEL, judge: "server:j"}
backend: echo
prompts: {name: builtin, red_team: 4, helpful: 2, heldout_red_team: 3, heldout_helpful: 3, heldout_borderline: 0}
revise: {rounds: 2}
pairs: {}
label: {labeler: {name: logprob, shots: 0}, audit: null}
reward: {name: rules, length_weight: 1.0}
evaluate:
  models: [base, "server:y"]
  evaluators:
  - revisions
  - pairwise
  - {name: multiple_choice, limit: 4}
  - {name: multiple_choice, limit: 3, title: again}
  - {name: calibration, judge: reward_model, limit: 6}
  - preference_model
branches:
  critiqued: {}
  direct: {revise: {rounds: 2, critique_template: direct}}
report: null
"""


@pytest.mark.slow
def test_evaluators_of_chains_judges_and_models_in_a_recipe(folder: Folder, model: Path) -> None:
    (folder.path / "r.yaml").write_text(RECIPE.replace("MODEL", str(model)))
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "run", "r.yaml"], cwd=folder.path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (artifact,) = (folder.path / ".cai/store/artifacts").glob("evaluate-*")
    metrics = {(m["id"], m["model"]): m for m in json.loads((artifact / "metrics.json").read_text())}
    assert metrics["multiple_choice", "base"]["n"] == 4
    assert metrics["multiple_choice.again", "base"]["n"] == 3, "each has its own options"
    assert metrics["revisions.gain.2", "revise[direct]"]["n"] == 4
    assert metrics["calibration.accuracy", "reward_model"]["n"] == 6
    curves = {curve["id"]: curve for curve in json.loads((artifact / "curves.json").read_text())}
    assert [s["name"] for s in curves["revisions.score"]["series"]] == ["revise[critiqued]", "revise[direct]"]
    assert curves["calibration.reliability"]["diagonal"] is True
    saved = next((folder.path / ".cai/store/artifacts").glob("reward-*")) / "model"
    alone = json.loads(
        folder.eval(
            *ECHO,
            "--suite",
            "preference_model",
            "--option",
            f"heldout={saved}",
            "--reward-model",
            "{name: rules, length_weight: 1.0}",
            "--limit",
            "2",
            "--json",
        )
    )
    assert {m["id"] for m in alone["metrics"]} == {
        "preference_model.heldout.harmful",
        "preference_model.heldout.harmless",
    }
