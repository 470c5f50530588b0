"""``cai gc``: what a run refers to stays, everything else goes, and nothing goes by accident."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cai_core.cli.main import main
from cai_core.store.artifacts import Artifacts
from cai_core.store.lock import store_lock

STAGES = {"first": ("prompts", "revise", "sft"), "second": ("prompts", "revise")}


def digest(kind: str, run: str) -> str:
    """Both runs share their prompts."""
    return ("0" if kind == "prompts" else {"first": "1", "second": "2"}[run]) * 64


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with the artifacts of two runs, a damaged one, and the checkpoints of a stage that is not finished."""
    monkeypatch.chdir(tmp_path)
    artifacts = Artifacts(tmp_path / ".cai/store/artifacts")
    for run, kinds in STAGES.items():
        for kind in kinds:
            if artifacts.find(kind, digest(kind, run)) is None:
                folder = artifacts.begin(kind, digest(kind, run))
                (folder / "table").write_text(f"{kind} of {run}")
                artifacts.commit(folder, kind, digest(kind, run), {}, {})
        record = {"stages": [{"kind": kind, "digest": digest(kind, run)} for kind in (*kinds, "rl")]}
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "run.json").write_text(json.dumps(record))
    shutil.copytree(artifacts.path("sft", digest("sft", "first")), artifacts.root / "sft-aaaa.corrupt")
    checkpoints = tmp_path / ".cai/store/work" / artifacts.path("rl", digest("rl", "second")).name
    checkpoints.mkdir(parents=True)
    (checkpoints / "step-1").write_text("x" * 1000)
    return tmp_path


def there(home: Path) -> set[str]:
    return {path.name.partition("-")[0] + path.name[-1] for path in home.glob(".cai/store/*/*-*")}


def test_what_no_run_refers_to_goes_and_only_when_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = {"prompts0", "revise1", "revise2", "sft1", "sftt", "rl2"}
    assert there(home) == everything
    shutil.rmtree(home / "runs" / "first")
    assert main(["gc"]) == 0
    told = capsys.readouterr().out
    assert "Would delete 3 folders" in told
    assert "1 run keeps the rest" in told
    assert there(home) == everything
    assert main(["gc", "--yes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {Path(item["path"]).name.partition("-")[0] for item in found["items"]} == {"revise", "sft"}
    assert there(home) == {"prompts0", "revise2", "rl2"}, "the checkpoints of a stage that is not finished stay"
    assert main(["gc", "--yes"]) == 0
    assert "Deleted 0 folders" in capsys.readouterr().out


def test_checkpoints_of_a_finished_stage_go(home: Path) -> None:
    artifacts = Artifacts(home / ".cai/store/artifacts")
    artifacts.commit(artifacts.begin("rl", digest("rl", "second")), "rl", digest("rl", "second"), {}, {})
    assert main(["gc", "--yes"]) == 0
    assert not list(home.glob(".cai/store/work/*"))
    assert artifacts.find("rl", digest("rl", "second"))


def test_runs_may_lie_in_several_places(home: Path) -> None:
    (home / "runs" / "first").rename(home / "elsewhere")
    assert main(["gc", "--runs", "runs", "--runs", "elsewhere", "--yes"]) == 0
    assert there(home) == {"prompts0", "revise1", "revise2", "sft1", "rl2"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda home: (home / "runs/first/run.json").write_text('{"stages": [{'), "does not say what it refers to"),
        (lambda home: (home / "runs/first/run.json").write_text('{"stages": [{"kind": "sft"}]}'), "does not say"),
        (lambda home: shutil.rmtree(home / "runs"), "no such folder"),
        (lambda home: [shutil.rmtree(path) for path in (home / "runs").iterdir()], "no run is there"),
        (lambda home: shutil.rmtree(home / ".cai"), "not a store"),
    ],
)
def test_when_in_doubt_nothing_goes(home: Path, capsys: pytest.CaptureFixture[str], spoil, says: str) -> None:  # type: ignore[no-untyped-def]
    spoil(home)
    before = there(home)
    assert main(["gc", "--yes"]) == 2
    assert says in capsys.readouterr().err
    assert there(home) == before


def test_a_run_that_writes_keeps_the_store(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cai_core.store.lock.store_lock.__wrapped__.__kwdefaults__", {"patience_s": 0.0})
    before = there(home)
    with store_lock(home / ".cai/store", say=print):
        assert main(["gc", "--yes"]) == 1
    assert "in use by" in capsys.readouterr().err
    assert there(home) == before
