"""A full disk, a read-only one, torn files: a clear error, what was there stays, and the run goes on afterwards."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from served import kill, newest, result, run, start, write
from servers import FaultServer

PROMPTS = 24
MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    script = "mount -t tmpfs tmpfs /mnt"
    return subprocess.run([*MOUNTS, "sh", "-c", script], capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="no right to mount a file system of our own here")


def on_a_small_disk(folder: Path, steps: list[tuple[str, str]]) -> list[tuple[int, str]]:
    """``cai run`` once per step on a tmpfs that holds store and runs: (mount options, shell commands before it). Exit
    code and output of each; afterwards the disk's content lies under ``folder/small``."""
    cai = shlex.join([sys.executable, "-m", "cai_core.cli.main", "run", "r.yaml"])
    script = ["mkdir -p disk", "mount -t tmpfs -o size=64k tmpfs disk"]
    for number, (options, before) in enumerate(steps):
        script.append(f"mount -o remount,{options} disk")
        script.append(before or ":")
        script.append(f"{cai} --store disk/store --runs disk/runs > out{number} 2>&1; echo $? > code{number}")
    script.append("cp -a disk small")
    subprocess.run([*MOUNTS, "sh", "-c", "\n".join(script)], cwd=folder, check=True)
    return [(int((folder / f"code{n}").read_text()), (folder / f"out{n}").read_text()) for n in range(len(steps))]


@needs_mounts
def test_a_full_disk_wherever_it_fills_up(tmp_path: Path) -> None:
    sizes = ["64k", "300k", "700k", "1200k", "64m"]
    with FaultServer() as server:
        write(tmp_path / "whole", server.url, PROMPTS)
        run(tmp_path / "whole")
        server.calls.clear()
        write(tmp_path / "full", server.url, PROMPTS)
        *failed, last = on_a_small_disk(tmp_path / "full", [(f"size={size}", "") for size in sizes])
    for code, output in failed:
        assert "Traceback" not in output
        if code == 0:
            break
        assert code == 1, output
        assert "no space left" in output, output
    assert failed[0][0] == failed[1][0] == 1
    assert last[0] == 0, last[1]
    assert len(set(server.calls)) == 5 * PROMPTS
    assert len(server.calls) <= 5 * PROMPTS + 9 * len(failed), "at most the calls under way were made again"
    (tmp_path / "full/.cai").mkdir()
    shutil.move(tmp_path / "full/small/store", tmp_path / "full/.cai/store")
    assert result(tmp_path / "full") == result(tmp_path / "whole")


@needs_mounts
def test_a_read_only_disk(tmp_path: Path) -> None:
    with FaultServer() as server:
        write(tmp_path / "r", server.url, 6)
        more = "sed -i 's/rounds: 2/rounds: 3/' r.yaml"
        fresh, first, same, longer, done = on_a_small_disk(
            tmp_path / "r", [("ro,size=64m", ""), ("rw", ""), ("ro", ""), ("ro", more), ("rw", "")]
        )
    assert first[0] == done[0] == 0, first[1] + done[1]
    for code, output in (fresh, longer, same):
        assert code == 1
        assert "Traceback" not in output
        assert "Read-only file system" in output
        assert "disk" in output, "which file or folder"
    assert Counter(server.calls).most_common(1)[0][1] == 1, "nothing was asked in vain, nothing twice"
    assert len(server.calls) == 6 * 7


# what tears ------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """One byte in the middle, at the same length."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_torn_artifact_is_kept_aside_and_made_anew_from_the_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with FaultServer() as server:
        write(folder, server.url, 6)
        run(folder)
        good, calls = result(folder), len(server.calls)
        for number, (name, damage) in enumerate([("chains.parquet", flip), ("manifest.json", cut)]):
            artifact = newest(folder, "revise")
            damage(artifact / name)
            torn = {path.name: path.read_bytes() for path in artifact.iterdir()}
            shutil.rmtree(newest(folder, "report"))  # so that there is a stage that reads it
            if name == "chains.parquet":  # what only reading shows
                export = [sys.executable, "-m", "cai_core.cli.main", "export", next((folder / "runs").iterdir())]
                said = subprocess.run([*export, "-o", "out"], cwd=folder, capture_output=True, text=True)
                assert said.returncode == 1
                assert "chains.parquet is not what the stage revise wrote" in said.stderr
                assert not (folder / "out").exists()
                output = run(folder, code=1)
                assert "give the same command again" in output
                run(folder)
            else:
                output = run(folder)
            assert ".corrupt" in output, name
            aside = artifact.with_name(f"{artifact.name}.corrupt{number or ''}")
            assert {path.name: path.read_bytes() for path in aside.iterdir()} == torn, name
            assert result(folder) == good, name
        assert len(server.calls) == calls, "no call was made again"


def test_a_torn_ledger_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    ledger = folder / ".cai/store/ledger/revise.sqlite"
    with FaultServer() as server:
        write(folder, server.url, 6)
        run(folder)
        good, whole, calls = result(folder), ledger.read_bytes(), len(server.calls)
        shutil.rmtree(newest(folder, "revise"))
        cut(ledger)
        torn = ledger.read_bytes()
        output = run(folder, code=1)
        assert "the ledger is damaged" in output
        assert "move revise.sqlite, revise.sqlite-wal and revise.sqlite-shm away together" in output
        assert ledger.read_bytes() == torn, "left as it is"
        ledger.write_bytes(whole)
        run(folder)
        assert len(server.calls) == calls, "restored, it is used again"

        shutil.rmtree(newest(folder, "revise"))
        for path in ledger.parent.glob("revise.sqlite*"):
            path.rename(folder / path.name)
        run(folder)
        assert result(folder) == good
        assert len(server.calls) == 2 * calls, "moved away, everything is asked again"


def test_a_torn_log_of_the_ledger_costs_its_last_rows_alone(tmp_path: Path) -> None:
    """Only a power cut tears the write-ahead log; SQLite then goes on from the last whole commit."""
    folder = tmp_path / "r"
    ledger = folder / ".cai/store/ledger/revise.sqlite"
    with FaultServer(delay=0.02) as server:
        write(folder, server.url, PROMPTS)
        process = start(folder)
        while len(server.calls) < 60 and process.poll() is None:
            time.sleep(0.002)
        kill(process)
        time.sleep(0.1)
        before = payloads(ledger, tmp_path / "before")
        cut(ledger.with_name("revise.sqlite-wal"))
        after, asked = payloads(ledger, tmp_path / "after"), len(server.calls)
        assert 0 < len(after) < len(before)
        assert before[: len(after)] == after
        run(folder)
        assert [call for call in server.calls[asked:] if call in " ".join(after)] == []
    assert json.loads(next((folder / "runs").glob("*/run.json")).read_text())["status"] == "ok"


def payloads(ledger: Path, copy: Path) -> list[str]:
    """What SQLite finds, looked at in a copy, since looking mends."""
    copy.mkdir()
    for path in ledger.parent.glob("revise.sqlite*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, copy)
    with sqlite3.connect(copy / ledger.name) as db:
        return [row[0] for row in db.execute("SELECT payload FROM units ORDER BY id")]
