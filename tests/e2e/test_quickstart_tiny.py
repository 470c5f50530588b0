"""The quickstart recipe end to end with real processes, on a tiny random model in the place of the embedded one.

The whole run is made under fire: in every stage the run is killed with -9 once and started again. The tests then look
at what it left. Numbers of a random model mean nothing; that everything is there, once, is the point.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from pathlib import Path

import jsonschema
import pytest

from homes import SMALL, Home
from tiny import embedded_stand_in


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    embedded_stand_in(folder / "cache")
    home = Home(folder, folder / "cache")
    home.under_fire(*SMALL, latest_s=6.0)
    return home


@pytest.mark.timeout(900)
def test_every_stage_was_killed_and_the_run_still_finished(home: Home) -> None:
    record = home.record()
    stages = [str(stage["id"]) for stage in record["stages"]]  # type: ignore[attr-defined]
    assert stages[:9] == ["prompts", "revise", "sft", "audit", "pairs", "label", "reward", "rl", "answers[base]"]
    assert stages[-2:] == ["evaluate", "report"]
    quick = {"prompts"}  # made in a moment, in the run's own process
    assert set(stages) - quick - set(home.killed_in) <= {"report"}, "each longer stage was killed once"
    assert record["status"] in ("ok", "partial")
    assert all(stage["status"] in ("ok", "partial") for stage in record["stages"])  # type: ignore[attr-defined]


def test_no_unit_stands_in_the_ledger_twice(home: Home) -> None:
    for path in (home.folder / ".cai/store/ledger").glob("*.sqlite"):
        with sqlite3.connect(path) as db:
            (rows, units) = db.execute("SELECT count(*), count(DISTINCT key) FROM units").fetchone()
        assert rows == units
    assert len(home.rows()["revise"]) >= 4 + 2, "an answer per prompt at least"


def test_the_report_holds_what_was_generated(home: Home) -> None:
    (folder,) = (home.folder / "runs").glob("quickstart-*")
    results = json.loads((folder / "report.json").read_text())
    assert (folder / "report.html").stat().st_size > 10_000
    schema = json.loads((Path(__file__).parents[2] / "docs/reference/results.schema.json").read_text())
    jsonschema.validate(results, schema, cls=jsonschema.Draft202012Validator)
    assert [model["name"] for model in results["models"]] == ["base", "sft", "rl"]
    base, *trained = [model["source"] for model in results["models"]]
    assert trained == [f"stage sft, from {base}", f"stage rl, from {base}"]
    assert len(results["chains"]) == 4
    assert len(results["pairs"]) == 4
    assert len(results["samples"]) == 7
    assert results["audit"]["n"] + results["audit"]["failed"] == 8
    assert results["findings"], "a random model cannot be a success"
    assert any(curve["id"].startswith("rl.") for curve in results["curves"])
    for metric in results["metrics"]:
        for value in metric["values"].values():
            assert value["value"] is None or value["low"] <= value["value"] <= value["high"], metric["id"]
    assert str(home.folder) not in (folder / "report.html").read_text(), "no path of a machine in what is mailed"


def test_rerun_does_nothing_and_says_so(home: Home) -> None:
    before = home.rows()
    logs = {path: path.stat().st_mtime_ns for path in (home.folder / "runs").glob("*/logs/*")}
    output = home.cai("run", "quickstart", *SMALL)
    assert "nothing was run again" in output
    assert home.rows() == before
    assert logs == {path: path.stat().st_mtime_ns for path in (home.folder / "runs").glob("*/logs/*")}


def test_plan_names_the_reason_and_only_what_depends_on_it(home: Home) -> None:
    plan = json.loads(home.cai("plan", "quickstart", *SMALL, "-o", "revise.rounds=1", "--json"))
    actions = {stage["stage"]: stage for stage in plan["stages"]}
    assert actions["prompts"]["action"] == "reuse"
    assert actions["audit"]["action"] == "reuse"
    assert actions["answers[base]"]["action"] == "reuse"
    assert actions["revise"]["why"] == "settings.rounds: 2 -> 1"
    assert actions["sft"]["why"] == "revise changed"
    assert actions["answers[rl]"]["action"] == "run"


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("best_of_n", "rloo", "ppo", "online_dpo", "oaif")]


@pytest.mark.parametrize("algorithm", ["dpo", *SLOW])
def test_another_algorithm_is_one_word(home: Home, algorithm: str) -> None:
    """With `dpo`, a policy on the way as well, which is a model like others."""
    kept = ["-o", "options.rl_algorithm.dpo={batch_size: 2, snapshots: [1]}"] if algorithm == "dpo" else []
    output = home.cai("run", "quickstart", *SMALL, "-o", f"rl={algorithm}", *kept, "--json")
    record = json.loads(output[output.index("{") : output.rindex("}") + 1])
    ran = [stage["id"] for stage in record["stages"] if not stage.get("reused")]
    assert ran == ["rl", *(["answers[rl@1]"] if kept else []), "answers[rl]", "evaluate", "report"]
    if kept:
        results = json.loads((home.folder / "runs" / record["run_id"] / "report.json").read_text(encoding="utf-8"))
        models = {model["name"]: model for model in results["models"]}
        assert {name: model["parent"] for name, model in models.items()} == {
            "base": None,
            "sft": "base",
            "rl@1": "sft",
            "rl": "rl@1",
        }
        assert models["rl@1"]["label"] == "RL-CAI (RL), step 1"
        assert len({model["digest"] for model in models.values()}) == 4
        assert [point["model"] for point in results["frontier"]["points"]] == list(models)


def test_ctrl_c_is_cancelled_and_goes_on(home: Home) -> None:
    more = ("-o", "prompts.red_team=64", "-o", "revise.sampling.max_new_tokens=64", "-o", "seed=3")
    arguments = ("run", "quickstart", *SMALL, *more, "--until", "revise")
    before = len(home.rows()["revise"])
    process = home.start(*arguments)
    while process.poll() is None and len(home.rows()["revise"]) <= before:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130, rest
    committed = home.rows()["revise"]
    assert len(committed) > before
    records = [json.loads(p.read_text()) for p in (home.folder / "runs").glob("quickstart-*/run.json")]
    assert [r["status"] for r in records if r["seed"] == 3] == ["cancelled"]
    home.cai(*arguments)
    after = home.rows()["revise"]
    assert committed.items() <= after.items()
    assert len(after) > len(committed)
