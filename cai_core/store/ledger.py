"""The ledger: one row per finished unit of work and attempt, payload or typed error, never changed once recorded.

One SQLite file per kind of stage, written by the one worker process of the stage that runs (the store's lock sees to
that). Write-ahead log and ``synchronous=NORMAL``: a kill at any instant loses no committed row; a power cut may lose
the last few. A rowid table with a unique index: random keys in a WITHOUT ROWID table slow down as it grows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cai_core.errors import EnvironmentProblem
from cai_core.store.canonical import canonical
from cai_core.types.records import UnitFailure

SCHEMA_VERSION = 2
"""1: no attempts. Such a file is brought to 2 when it is opened."""
_COLUMNS = "key, unit, payload, error_kind, error, attempt"
_KEYS_PER_QUERY = 500  # SQLite's default limit on variables was 999 in older builds


@dataclass(frozen=True, slots=True)
class Row:
    """One finished unit. ``payload`` is JSON; for a failure it may hold what was seen before it failed."""

    key: str
    unit: str
    payload: Mapping[str, Any]
    failure: UnitFailure | None = None
    attempt: int = 0


class Ledger(Protocol):
    """What the unit loop needs from a ledger."""

    def done(self, keys: Sequence[str]) -> dict[str, Row]:
        """The recorded rows among ``keys``, of each the newest. Units that are to be tried again are not among them."""
        ...

    def append(self, rows: Iterable[Row]) -> None:
        """Record finished units durably before returning. A key that is done already is left as it is."""
        ...

    def scan(self) -> Iterator[Row]:
        """All rows in the order they were recorded, in constant memory."""
        ...


class SQLiteLedger:
    """``Ledger`` in one file on a local disk.

    attempt: rows are written as this attempt, and a unit is to be tried again if its newest row is an ``infra`` failure
    of an earlier one. The rows of earlier attempts stay. Stages and recipes share the file, so a new attempt has a
    number above all in the store (``last_attempt``).
    """

    def __init__(self, path: Path, *, attempt: int = 0) -> None:
        self.path = path
        self.attempt = attempt
        self.retried = 0  # units looked up by ``done`` that failed in an earlier attempt and were, or are, asked again
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, 1, SCHEMA_VERSION):
                raise EnvironmentProblem(
                    f"the ledger has schema {version}, this version reads {SCHEMA_VERSION}",
                    where=str(path),
                    hint="use the cai-core version that wrote it, or another --store",
                )
            if version != SCHEMA_VERSION:
                self._create(version)
        except (sqlite3.Error, OSError) as error:
            raise _problem(path, error) from error

    def _create(self, version: int) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS units (id INTEGER PRIMARY KEY, key TEXT NOT NULL, unit TEXT NOT NULL,"
            " payload TEXT NOT NULL, error_kind TEXT, error TEXT, attempt INTEGER NOT NULL DEFAULT 0)"
        )
        if version == 1:
            self._db.execute("ALTER TABLE units ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0")
            self._db.execute("DROP INDEX IF EXISTS units_key")
        self._db.execute("CREATE UNIQUE INDEX IF NOT EXISTS units_key_attempt ON units(key, attempt)")
        self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        self._db.execute("COMMIT")

    def done(self, keys: Sequence[str]) -> dict[str, Row]:
        """See ``Ledger``."""
        found: dict[str, Row] = {}
        again: list[str] = []
        try:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = list(keys[start : start + _KEYS_PER_QUERY])
                marks = ",".join("?" * len(some))
                query = f"SELECT {_COLUMNS} FROM units WHERE key IN ({marks}) ORDER BY attempt"
                for record in self._db.execute(query, some):
                    row = _row(record)
                    again += [row.key] * (row.key in found)
                    found[row.key] = row
        except sqlite3.Error as error:
            raise _problem(self.path, error) from error
        self.retried += len({*again, *(key for key, row in found.items() if self._again(row))})
        return {key: row for key, row in found.items() if not self._again(row)}

    def append(self, rows: Iterable[Row]) -> None:
        """See ``Ledger``. All of ``rows`` are committed together."""
        records = [
            (
                row.key,
                row.unit,
                canonical(dict(row.payload)),
                row.failure.kind if row.failure else None,
                # a lone surrogate from a model or a data set cannot be stored as UTF-8
                row.failure.message.encode("utf-8", "backslashreplace").decode() if row.failure else None,
                self.attempt,
            )
            for row in rows
        ]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR IGNORE INTO units (key, unit, payload, error_kind, error, attempt) VALUES (?,?,?,?,?,?)",
                records,
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise _problem(self.path, error) from error

    def scan(self) -> Iterator[Row]:
        """See ``Ledger``."""
        try:
            for record in self._db.execute(f"SELECT {_COLUMNS} FROM units ORDER BY id"):
                yield _row(record)
        except sqlite3.Error as error:
            raise _problem(self.path, error) from error

    def _again(self, row: Row) -> bool:
        return row.failure is not None and row.failure.kind == "infra" and row.attempt < self.attempt

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def last_attempt(folder: Path) -> int:
    """The highest attempt in the ledgers of a folder, 0 if there is none. Mends what a kill left half done, no more.

    Raises ``EnvironmentProblem`` where one cannot be read.
    """
    return max((_last_attempt(path) for path in sorted(folder.glob("*.sqlite"))), default=0)


def _last_attempt(path: Path) -> int:
    try:
        for mode in ("ro", "rw"):
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True)) as db:
                try:
                    (version,) = db.execute("PRAGMA user_version").fetchone()
                    if version != SCHEMA_VERSION:
                        return 0  # an older one has no attempts, a newer one is refused when it is opened
                    return int(db.execute("SELECT MAX(attempt) FROM units").fetchone()[0] or 0)
                except sqlite3.OperationalError as error:
                    # A process that was killed while it made the file left what must be undone before anyone can read.
                    if mode == "rw" or "readonly" not in str(error):
                        raise
    except sqlite3.Error as error:
        raise _problem(path, error) from error
    raise AssertionError("the second way returns or raises")


def _row(record: tuple[str, str, str, Any, Any, int]) -> Row:
    key, unit, payload, kind, message, attempt = record
    failure = UnitFailure(kind, message) if kind else None
    try:
        return Row(key, unit, json.loads(payload), failure, attempt)
    except (ValueError, TypeError) as error:
        raise sqlite3.DatabaseError(f"the row of {unit!r} is malformed: {error}") from error


def _problem(path: Path, error: Exception) -> EnvironmentProblem:
    text = str(error)
    if "disk is full" in text or getattr(error, "errno", None) == 28:
        return EnvironmentProblem(
            "no space left on the disk",
            where=str(path),
            hint="free some space and give the same command again: all committed rows are kept",
        )
    if "malformed" in text or "not a database" in text:
        return EnvironmentProblem(
            f"the ledger is damaged ({text})",
            where=str(path),
            hint=f"restore it, or move {path.name}, {path.name}-wal and {path.name}-shm away together: then the units "
            "of this kind of stage are run again; finished artifacts are kept",
        )
    return EnvironmentProblem(f"cannot use the ledger: {text}", where=str(path), hint="check the folder's permissions")
