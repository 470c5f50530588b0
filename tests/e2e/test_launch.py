"""Stages in several processes from the command line: real launches, faults, and what is refused beforehand."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cai_core.errors import EnvironmentProblem
from cai_core.pipeline.ranks import Ranks
from homes import Home, home_with_pairs

RECIPE = """
name: two
models: {base: smollm2-135m-instruct}
pairs: {path: pairs.jsonl}
label: {labeler: {name: human, path: pairs.jsonl}, audit: null}
reward: {name: preference, batch_size: 4, helpful: none, heldout: 0, epochs: 1, save_steps: 1}
launch: {processes: 2}
report: null
"""
LONG = ("-o", "reward.epochs=40")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_with_pairs(tmp_path, RECIPE)


def artifact(home: Home) -> Path:
    (found,) = (home.folder / ".cai/store/artifacts").glob("reward-*")
    return found


def run_record(home: Home) -> dict[str, Any]:
    (path,) = (home.folder / "runs").glob("two-*/run.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.timeout(900)
def test_a_stage_runs_in_two_processes_and_leaves_what_one_leaves(home: Home) -> None:
    home.cai("run", "r.yaml")
    info = json.loads((artifact(home) / "manifest.json").read_text(encoding="utf-8"))["info"]
    assert info["launch"] == {"processes": 2, "config": {}, "ran_as": "MULTI_CPU"}
    assert {path.name for path in (artifact(home) / "model").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "preference.json", "cai-core.json"
    }  # fmt: skip
    assert not list((home.folder / ".cai/store/work").iterdir())
    assert run_record(home)["stages"][-1]["info"]["launch"]["processes"] == 2
    # How many processes is no part of what comes out.
    assert "nothing was run again" in home.cai("run", "r.yaml", "-o", "launch=null")


# faults --------------------------------------------------------------------------------------------------------------


def until(wanted: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What ``wanted`` returns as soon as that is something."""
    end = time.monotonic() + 280
    while time.monotonic() < end:
        if found := wanted():
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("it never came")


def ranks(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The processes of the launched stage by their number, once there are two."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            given = child.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if given.get("CAI_LAUNCHED"):
            found[int(given["RANK"])] = child
    return found if len(found) == 2 else {}


def at_work(home: Home, process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The two processes, some way into the training."""
    until(
        lambda: list((home.folder / ".cai/store/work").glob("reward-*/preference-*/checkpoint-*/whole.json")), process
    )
    return dict(until(lambda: ranks(process), process))


def gone(processes: dict[int, psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(list(processes.values()), timeout=60)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [0, 1])
def test_one_process_dies_and_the_stage_says_which(home: Home, number: int) -> None:
    process = home.start("run", "r.yaml", *LONG)
    both = at_work(home, process)
    both[number].send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 1
    assert f"process {number} of 2 died (SIGKILL)" in said
    assert gone(both)
    assert run_record(home)["status"] == "error"
    home.cai("run", "r.yaml", *LONG)
    assert run_record(home)["status"] == "ok"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_leaves_no_process(home: Home, how: signal.Signals) -> None:
    process = home.start("run", "r.yaml", *LONG)
    both = at_work(home, process)
    process.send_signal(how)
    process.communicate()
    assert process.returncode == 130
    assert gone(both)
    assert run_record(home)["status"] == "cancelled"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_leaves_no_process_and_goes_on(home: Home) -> None:
    process = home.start("run", "r.yaml", *LONG)
    both = at_work(home, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert gone(both)
    steps = len(list((home.folder / ".cai/store/work").glob("reward-*/preference-*/checkpoint-*")))
    assert steps
    home.cai("run", "r.yaml", *LONG)
    straight = Home(home.folder / "again", home.cache)
    straight.folder.mkdir()
    for name in ("r.yaml", "pairs.jsonl"):
        (straight.folder / name).write_bytes((home.folder / name).read_bytes())
    straight.cai("run", "r.yaml", *LONG)
    for name in ("model/model.safetensors", "training.json"):
        assert (artifact(home) / name).read_bytes() == (artifact(straight) / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_batch_that_cannot_be_shared_is_refused_by_its_name(home: Home) -> None:
    said = home.cai("run", "r.yaml", "-o", "reward.batch_size=3", check=2)
    assert "2 processes do not divide batch_size 3" in said
    assert "launch.processes" in said


# refused before anything runs ----------------------------------------------------------------------------------------


FSDP = "distributed_type: FSDP\nnum_processes: 2\n"


@pytest.mark.parametrize(
    ("changed", "config", "words"),
    [
        (["launch={processes: 0}"], "", "greater than or equal to 1"),
        (["launch={proceses: 2}"], "", "processes"),
        (["launch=two"], "", "a number of processes, or a mapping"),
        (["launch={rl: 0}"], "", "launch.rl.processes"),
        (["launch={config: nowhere.yaml}"], "", "cannot read nowhere.yaml"),
        (["launch={processes: 3, config: c.yaml}"], FSDP, "processes is 3, and c.yaml says num_processes: 2"),
        (["launch={config: c.yaml}"], "distributed_type: FSPD\n", "'FSPD' is not supported"),
        (["launch={config: c.yaml}"], "num_machines: 4\n", "a stage runs on one machine"),
        (["launch={config: c.yaml}"], "- a\n- b\n", "not a mapping"),
        (
            ["launch={config: c.yaml}"],
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {gradient_accumulation_steps: 4}\n",
            "gradient_accumulation_steps is set",
        ),
        (
            ["launch={config: c.yaml}"],
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {deepspeed_config_file: ds.json}\n",
            "deepspeed_config_file is not supported",
        ),
        (
            ["launch={config: c.yaml}"],
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 0}\n",
            "stage 0 shares out nothing",
        ),
        (
            ["launch={config: c.yaml}"],
            "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 3}\n",
            "write `zero3_save_16bit_model: true`",
        ),
        (["launch={reward: {processes: 2}}", "reward=rules"], "", "trains in one process"),
    ],
)
def test_a_launch_that_cannot_be_is_refused_with_its_place(
    home: Home, changed: list[str], config: str, words: str
) -> None:
    (home.folder / "c.yaml").write_text(config, encoding="utf-8")
    said = home.cai("plan", "r.yaml", *(part for text in changed for part in ("-o", text)), check=2)
    assert words in said
    assert "Traceback" not in said


def test_a_stage_of_one_process_takes_no_part_in_what_is_said_of_all(home: Home) -> None:
    home.cai("plan", "r.yaml", "-o", "reward=rules")


def test_sharding_on_a_cpu_is_refused_and_not_done_otherwise(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate would start plain data parallel there and say nothing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (home.folder / "c.yaml").write_text(FSDP, encoding="utf-8")
    said = home.cai("plan", "r.yaml", "-o", "device=cpu", "-o", "launch={config: c.yaml}", check=2)
    assert "r.yaml:7: launch.config: FSDP shards a model over GPUs" in said
    said = home.cai("run", "r.yaml", "-o", "launch={config: c.yaml}", check=2)
    assert "launch.config: FSDP shards a model over GPUs" in said


# which error is the cause --------------------------------------------------------------------------------------------


def failure(number: int, message: str, *, typed: bool, cancelled: bool = False) -> dict[str, Any]:
    problem = {"message": message, "where": "", "hint": "", "code": 1, "cancelled": cancelled}
    return {"event": "error", "rank": number, "code": 1, "typed": typed, "problems": [problem]}


@pytest.mark.parametrize(
    ("errors", "failures", "words"),
    [
        # One says what is wrong, and the other loses its connection, told first or last.
        ([("lost", 0, False), ("no room", 1, True)], {0: (1, 5), 1: (1, 5)}, "no room"),
        ([("bad", 1, False), ("lost", 0, False)], {0: (1, 5), 1: (1, 5)}, "process 1 of 2: bad"),
        # One dies without a word; the other loses its connection, or is ended.
        ([("lost", 0, False)], {0: (1, 5), 1: (-9, 5)}, "process 1 of 2 died (SIGKILL)"),
        ([], {0: (-15, 5), 1: (3, 5)}, "process 1 of 2 died (exit code 3)"),
        # Both die, one of them since it did not end in time.
        ([], {0: (-9, 35), 1: (-11, 5)}, "process 1 of 2 died (SIGSEGV)"),
    ],
)
def test_the_cause_is_told_and_not_what_follows_from_it(
    tmp_path: Path, errors: list[tuple[str, int, bool]], failures: dict[int, tuple[int, float]], words: str
) -> None:
    said: list[dict[str, Any]] = []
    spec: Any = SimpleNamespace(launch={"processes": 2, "config": {}})
    (tmp_path / "rl.rank1.log").write_text("something\nthe last words\n", encoding="utf-8")
    parent = Ranks(tmp_path / "rl.job.json", spec, said.append)
    parent.errors = [failure(number, text, typed=typed) for text, number, typed in errors]
    with suppress(EnvironmentProblem):
        assert parent._failed(failures) == 1
        assert said[0]["problems"][0]["message"] == words
        return
    with pytest.raises(EnvironmentProblem, match=re.escape(words)) as raised:
        parent._failed(failures)
    assert "the last words" in raised.value.hint
    assert raised.value.where.endswith("rl.rank1.log")


def test_a_process_that_died_before_it_had_a_log_of_its_own(tmp_path: Path) -> None:
    """It says where to look, and not what a variable was not."""
    spec: Any = SimpleNamespace(launch={"processes": 2, "config": {}})
    parent = Ranks(tmp_path / "rl.job.json", spec, lambda event: None)
    with pytest.raises(EnvironmentProblem, match=r"process 1 of 2 died \(SIGKILL\)") as raised:
        parent._failed({1: (-9, 5)})
    assert "it said nothing" in raised.value.hint
    (tmp_path / "rl.log").write_text("No module named 'x'\n", encoding="utf-8")
    with pytest.raises(EnvironmentProblem) as raised:
        parent._failed({1: (1, 5)})
    assert "No module named 'x'" in raised.value.hint
    assert raised.value.where == str(tmp_path / "rl.log")


def test_the_last_words_are_not_those_of_an_earlier_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "rl.rank1.log"
    log.write_text("of an earlier attempt\n", encoding="utf-8")

    def launch(arguments: list[str]) -> dict[int, tuple[int, float]]:
        with log.open("a", encoding="utf-8") as file:
            file.write("of this one\n")
        return {1: (-9, 5)}

    none = SimpleNamespace(join=lambda seconds: None)
    monkeypatch.setattr("cai_core.pipeline.ranks._launch", launch)
    monkeypatch.setattr("cai_core.pipeline.ranks.Ranks._listen", lambda self: none)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    monkeypatch.setattr("os.environ", {})
    spec: Any = SimpleNamespace(launch={"processes": 2, "config": {}})
    with pytest.raises(EnvironmentProblem) as raised:
        Ranks(tmp_path / "rl.job.json", spec, lambda event: None).run("cpu")
    assert "of this one" in raised.value.hint
    assert "earlier" not in raised.value.hint
