"""The store: canonical values, ledger, artifacts, tables, lock. Crashes are real processes killed with -9."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai_core.errors import EnvironmentProblem
from cai_core.store.artifacts import Artifacts
from cai_core.store.canonical import canonical, derive_seed, digest, write_atomic
from cai_core.store.ledger import Row, SQLiteLedger, last_attempt
from cai_core.store.lock import store_lock
from cai_core.store.tables import read_table, write_table
from cai_core.types.records import UnitFailure

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_canonical_is_ascii_stable_and_reads_back(value: object) -> None:
    text = canonical(value)
    assert text.isascii()
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text


def test_canonical_ignores_key_order_and_refuses_nan() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(float("nan"))


def test_seeds_depend_on_every_part_and_fit_a_torch_generator() -> None:
    seeds = {derive_seed(seed, name, number) for seed in (0, 1) for name in ("a", "b") for number in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_ledger_keeps_the_first_row_of_a_key_and_the_order(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "a" / "ledger.sqlite")
    ledger.append([Row("k1", "u1", {"text": "first \ud800"}), Row("k2", "u2", {}, UnitFailure("refusal", "no"))])
    ledger.append([Row("k1", "u1", {"text": "second"})])
    assert [row.key for row in ledger.scan()] == ["k1", "k2"]
    done = ledger.done(["k1", "k2", "k3"] + [f"x{i}" for i in range(2000)])
    assert set(done) == {"k1", "k2"}
    assert done["k1"].payload == {"text": "first \ud800"}
    assert done["k2"].failure == UnitFailure("refusal", "no")


def test_ledger_refuses_nan_and_writes_nothing_of_the_group(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "ledger.sqlite")
    with pytest.raises(ValueError):
        ledger.append([Row("k1", "u1", {}), Row("k2", "u2", {"x": float("inf")})])
    assert list(ledger.scan()) == []


def test_committed_rows_survive_kill_9(tmp_path: Path) -> None:
    """A process that commits row after row is killed; every row it reported as committed is there."""
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from cai_core.store.ledger import Row, SQLiteLedger
        ledger = SQLiteLedger(Path({str(tmp_path / "l.sqlite")!r}))
        for i in range(10**6):
            ledger.append([Row(f"k{{i}}", f"u{{i}}", {{"text": "x" * 2000}})])
            print(i, flush=True)
        """
    )
    reported = -1
    for round_number in range(3):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            reported = max(reported, int(line))
            if reported >= 40 * (round_number + 1):
                process.send_signal(signal.SIGKILL)
                break
        reported = max([reported, *(int(line) for line in process.stdout if line.strip().isdigit())])
        process.wait()
    rows = {row.key for row in SQLiteLedger(tmp_path / "l.sqlite").scan()}
    assert {f"k{i}" for i in range(reported + 1)} <= rows


def test_damaged_ledger_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no database" * 500)
    with pytest.raises(EnvironmentProblem, match="damaged"):
        SQLiteLedger(tmp_path / "ledger.sqlite")


def test_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: the write fails in the same place."""
    script = textwrap.dedent(
        f"""
        import resource, signal
        from pathlib import Path
        from cai_core.errors import EnvironmentProblem
        from cai_core.store.ledger import Row, SQLiteLedger
        ledger = SQLiteLedger(Path({str(tmp_path / "l.sqlite")!r}))
        ledger.append([Row("kept", "u", {{}})])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            for i in range(1000):
                ledger.append([Row(f"k{{i}}", "u", {{"text": "x" * 2000}})])
        except EnvironmentProblem as error:
            print(i, error)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, message = done.stdout.split(" ", 1)
    assert "cannot use the ledger" in message or "no space" in message
    ledger = SQLiteLedger(tmp_path / "l.sqlite")
    rows = {row.key for row in ledger.scan()}
    assert {"kept", *(f"k{i}" for i in range(int(count)))} <= rows
    ledger.append([Row("after", "u", {})])


def test_a_new_attempt_asks_for_infra_failures_alone_and_changes_no_row(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    down, refused = UnitFailure("infra", "down"), UnitFailure("refusal", "no")
    first = SQLiteLedger(path)
    first.append([Row("good", "u", {"text": "a"}), Row("down", "u", {}, down), Row("refused", "u", {}, refused)])
    before = list(first.scan())
    assert set(first.done(["good", "down", "refused"])) == {"good", "down", "refused"}

    second = SQLiteLedger(path, attempt=1)
    assert set(second.done(["good", "down", "refused"])) == {"good", "refused"}
    second.append([Row("down", "u", {}, down)])
    assert "down" in second.done(["down"]), "once per attempt"

    third = SQLiteLedger(path, attempt=2)
    third.append([Row("down", "u", {"text": "b"})])
    for ledger in (first, second, third, SQLiteLedger(path, attempt=3)):
        row = ledger.done(["down"])["down"]
        assert (row.payload, row.failure, row.attempt) == ({"text": "b"}, None, 2)
    assert list(third.scan())[:3] == before


def test_a_ledger_without_attempts_is_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    with sqlite3.connect(path) as old:  # as version 0.1 wrote it
        old.execute(
            "CREATE TABLE units (id INTEGER PRIMARY KEY, key TEXT NOT NULL, unit TEXT NOT NULL,"
            " payload TEXT NOT NULL, error_kind TEXT, error TEXT)"
        )
        old.execute("CREATE UNIQUE INDEX units_key ON units(key)")
        old.execute("INSERT INTO units VALUES (1, 'k', 'u', '{\"text\":\"a\"}', NULL, NULL)")
        old.execute("INSERT INTO units VALUES (2, 'd', 'u', '{}', 'infra', 'down')")
        old.execute("PRAGMA user_version=1")
    ledger = SQLiteLedger(path, attempt=1)
    assert ledger.done(["k", "d"]) == {"k": Row("k", "u", {"text": "a"})}
    ledger.append([Row("d", "u", {"text": "b"})])
    assert [(row.key, row.attempt) for row in SQLiteLedger(path).scan()] == [("k", 0), ("d", 0), ("d", 1)]


def test_a_ledger_whose_maker_was_killed_on_the_way_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "label.sqlite"
    child = f"""
    import os, signal, sqlite3
    db = sqlite3.connect({str(path)!r}, isolation_level=None)
    db.execute("PRAGMA cache_size = 1")
    db.execute("CREATE TABLE other (text TEXT)")
    db.execute("BEGIN")
    for n in range(200):
        db.execute("INSERT INTO other VALUES (?)", ("x" * 5000,))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(child)])
    assert path.with_name("label.sqlite-journal").stat().st_size > 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db, pytest.raises(sqlite3.OperationalError):
        db.execute("PRAGMA user_version").fetchone()
    assert last_attempt(tmp_path) == 0


def test_the_last_attempt_is_that_of_all_ledgers_and_looking_changes_none(tmp_path: Path) -> None:
    assert last_attempt(tmp_path / "none") == 0
    for name, attempt in (("pairs", 3), ("label", 1)):
        ledger = SQLiteLedger(tmp_path / f"{name}.sqlite", attempt=attempt)
        ledger.append([Row("k", "u", {})])
        ledger.close()
    with sqlite3.connect(tmp_path / "old.sqlite") as old:  # as version 0.1 wrote it
        old.execute("CREATE TABLE units (id INTEGER PRIMARY KEY, key TEXT NOT NULL)")
        old.execute("PRAGMA user_version=1")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.sqlite")}
    assert last_attempt(tmp_path) == 3
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.sqlite")} == before
    (tmp_path / "torn.sqlite").write_bytes(b"this is no database" * 500)
    with pytest.raises(EnvironmentProblem, match="damaged"):
        last_attempt(tmp_path)


@pytest.mark.parametrize("what", ["half", "another file", "a page of noise", "a row that is not JSON"])
def test_a_damaged_ledger_says_what_to_move_away(tmp_path: Path, what: str) -> None:
    path = tmp_path / "l.sqlite"
    ledger = SQLiteLedger(path)
    keys = [f"k{i}" for i in range(200)]
    ledger.append([Row(key, "u", {"text": "x" * 500}) for key in keys])
    ledger.close()
    data = path.read_bytes()
    middle = len(data) // 2
    if what == "a row that is not JSON":
        with sqlite3.connect(path) as db:
            db.execute("UPDATE units SET payload = '{' WHERE key = 'k7'")
    else:
        path.write_bytes(
            {
                "half": data[:middle],
                "another file": b"something else" * 100,
                "a page of noise": data[: middle - 4096] + b"\xa5" * 8192 + data[middle + 4096 :],
            }[what]
        )
    before = path.read_bytes()
    with pytest.raises(EnvironmentProblem, match="damaged") as caught:
        SQLiteLedger(path).done(keys)
    assert "l.sqlite-wal" in caught.value.hint
    assert path.read_bytes() == before


def test_artifact_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    sha = digest("x")
    folder = artifacts.begin("sft", sha)
    (folder / "model").mkdir()
    (folder / "model" / "w.bin").write_bytes(b"weights")
    assert artifacts.find("sft", sha) is None
    made = artifacts.commit(folder, "sft", sha, {"stage": "sft"}, {"seconds": 1.5})
    assert artifacts.find("sft", sha) == made
    (made.path / "model" / "w.bin").write_bytes(b"torn")
    assert artifacts.find("sft", sha) is None
    assert artifacts.damaged("sft", sha)
    moved = artifacts.quarantine("sft", sha)
    assert (moved / "model" / "w.bin").read_bytes() == b"torn"
    assert not artifacts.damaged("sft", sha)


@pytest.mark.parametrize(
    "manifest", ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 1, "digest": "D", "files": []}', "[" * 100_000]
)
def test_a_manifest_of_any_form_never_stops_find(tmp_path: Path, manifest: str) -> None:
    artifacts = Artifacts(tmp_path)
    sha = digest("x")
    artifacts.commit(artifacts.begin("sft", sha), "sft", sha, {}, {})
    (artifacts.path("sft", sha) / "manifest.json").write_text(manifest.replace("D", sha))
    assert artifacts.find("sft", sha) is None
    assert artifacts.damaged("sft", sha)


def test_a_changed_byte_is_found_where_the_size_is_right(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    sha = digest("x")
    folder = artifacts.begin("sft", sha)
    (folder / "a").write_bytes(b"weights")
    made = artifacts.commit(folder, "sft", sha, {}, {})
    assert artifacts.torn(made) == ""
    (made.path / "a").write_bytes(b"Weights")
    assert artifacts.find("sft", sha) == made
    assert artifacts.torn(made) == "a"


def test_sweep_removes_what_interrupted_stages_left(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    folder = artifacts.begin("sft", digest("x"))
    artifacts.sweep()
    assert not folder.exists()


def test_nan_in_info_never_makes_an_artifact(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    folder = artifacts.begin("sft", digest("x"))
    with pytest.raises(ValueError):
        artifacts.commit(folder, "sft", digest("x"), {}, {"loss": float("nan")})
    assert artifacts.find("sft", digest("x")) is None


def test_write_atomic_leaves_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@given(st.lists(st.tuples(st.text(), st.floats(allow_nan=False), JSON), max_size=30))
def test_tables_read_back_as_written(rows: list[tuple[str, float, object]]) -> None:
    import tempfile

    columns = {"s": "str", "f": "float", "j": "json", "m": "messages"}
    records = [{"s": s, "f": f, "j": j, "m": [{"role": "user", "content": s}]} for s, f, j in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        assert write_table(path, columns, records) == len(records)
        assert list(read_table(path, columns)) == records


def test_a_column_that_an_older_table_lacks_is_null(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = [{"id": "a", "m": [{"role": "user", "content": "x"}]}, {"id": "b", "m": None}]
    write_table(path, {"id": "str", "m": "messages"}, rows)
    read = list(read_table(path, {"n": "int", "m": "messages", "j": "json"}))
    assert read == [{"n": None, "m": row["m"], "j": None} for row in rows], "those that are asked for, and no other"


def test_tables_load_with_datasets(tmp_path: Path) -> None:
    from datasets import load_dataset

    path = tmp_path / "t.parquet"
    write_table(path, {"id": "str", "p": "float"}, [{"id": "a", "p": 0.25}, {"id": "b", "p": None}])
    data = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["id"] == ["a", "b"]
    assert data["p"] == [0.25, None]


def test_lock_is_exclusive_names_its_holder_and_goes_with_a_killed_process(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from cai_core.store.lock import store_lock
        with store_lock(Path({str(tmp_path)!r}), say=print):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(EnvironmentProblem, match=str(holder.pid)),
        store_lock(tmp_path, say=lambda text: None, patience_s=0.2),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with store_lock(tmp_path, say=lambda text: None, patience_s=5):
        pass


def test_worker_that_inherits_the_lock_keeps_it(tmp_path: Path) -> None:
    """After a kill -9 of the run its worker may live a moment longer; nobody else may write until it has gone."""
    with store_lock(tmp_path, say=lambda text: None) as lock:
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"], pass_fds=(lock,))
    start = time.monotonic()
    with store_lock(tmp_path, say=lambda text: None, patience_s=20):
        assert worker.poll() is not None
    assert time.monotonic() - start < 20


def test_units_that_were_asked_for_again_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    first = SQLiteLedger(path)
    first.append([Row("a", "a", {}, UnitFailure("infra", "no answer")), Row("b", "b", {})])
    first.append([Row("c", "c", {}, UnitFailure("refusal", "no"))])
    assert set(first.done(["a", "b", "c"])) == {"a", "b", "c"}
    assert first.retried == 0
    second = SQLiteLedger(path, attempt=1)
    assert set(second.done(["a", "b", "c"])) == {"b", "c"}
    assert second.retried == 1
    second.append([Row("a", "a", {"text": "yes"})])
    later = SQLiteLedger(path, attempt=1)
    assert later.done(["a", "b", "c"])["a"].payload == {"text": "yes"}
    assert later.retried == 1, "a later run of the stage knows it too"
