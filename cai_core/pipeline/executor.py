"""The unit loop: claim -> run -> record. It is the pipeline's, never a plugin's.

Units stream in, rows stream out, each row is committed as it finishes, and finished units may call for new ones. What
is recorded is never run again. Memory holds one chunk of units, not the stage.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from cai_core.errors import PluginError
from cai_core.store.canonical import digest
from cai_core.store.ledger import Ledger, Row
from cai_core.types.context import Progress
from cai_core.types.records import UnitFailure

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unit(Generic[T]):
    """One unit of work. ``identity`` (JSON) decides its result and nothing else does; ``work`` is what the stage
    needs to run it."""

    name: str
    identity: Mapping[str, Any]
    work: T

    @property
    def key(self) -> str:
        """sha256 of the identity."""
        return digest(self.identity)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What running a unit gave: a JSON payload, and the failure if there is no result."""

    payload: Mapping[str, Any]
    failure: UnitFailure | None = None


class UnitStage(Protocol[T]):
    """A stage as the loop sees it."""

    def initial(self) -> Iterable[Unit[T]]:
        """The units to begin with; consumed lazily."""
        ...

    def run(self, units: Sequence[Unit[T]]) -> Iterator[tuple[str, Outcome]]:
        """(unit name, outcome) for each unit, as they finish, in any order."""
        ...

    def follow(self, unit: Unit[T], row: Row) -> Iterable[Unit[T]]:
        """The units that this finished one calls for. Called once for every unit, run now or recorded earlier."""
        ...


class Executor(Protocol):
    """Runs the units of a stage against a ledger."""

    def run(self, stage: UnitStage[T], ledger: Ledger, progress: Progress, *, total: int) -> Tally:
        """Run until no unit is left."""
        ...


@dataclass(slots=True)
class Tally:
    """Counts of a stage's units: run now, taken from the ledger, failed by kind; tokens of all of them."""

    ran: int = 0
    reused: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, row: Row, *, fresh: bool) -> None:
        """Count one row."""
        if fresh:
            self.ran += 1
        else:
            self.reused += 1
        if row.failure:
            self.failed[row.failure.kind] += 1
        self.tokens_in += int(row.payload.get("tokens_in", 0))
        self.tokens_out += int(row.payload.get("tokens_out", 0))

    def as_info(self) -> dict[str, Any]:
        """For an artifact's manifest."""
        units = self.ran + self.reused
        return {
            "ok": units - sum(self.failed.values()),
            "failed": dict(sorted(self.failed.items())),
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "units_resumed": self.reused,
        }


class LocalExecutor:
    """In this process, in chunks. Follow-up units go first, so that chains finish and memory stays small."""

    def __init__(self, chunk: int = 256) -> None:
        self.chunk = chunk

    def run(self, stage: UnitStage[T], ledger: Ledger, progress: Progress, *, total: int) -> Tally:
        """See ``Executor``. ``total``: the number of units expected, for the progress bar."""
        tally = Tally()
        fresh = iter(stage.initial())
        ready: deque[Unit[T]] = deque()
        while True:
            chunk = [ready.popleft() for _ in range(min(self.chunk, len(ready)))]
            for unit in fresh if len(chunk) < self.chunk else ():
                chunk.append(unit)
                if len(chunk) == self.chunk:
                    break
            if not chunk:
                return tally
            self._chunk(stage, ledger, chunk, ready, tally, progress, total)

    def _chunk(
        self,
        stage: UnitStage[T],
        ledger: Ledger,
        chunk: Sequence[Unit[T]],
        ready: deque[Unit[T]],
        tally: Tally,
        progress: Progress,
        total: int,
    ) -> None:
        keys = {unit.name: unit.key for unit in chunk}
        recorded = ledger.done(list(keys.values()))
        todo = {unit.name: unit for unit in chunk if keys[unit.name] not in recorded}
        for unit in chunk:
            if unit.name not in todo:
                row = recorded[keys[unit.name]]
                tally.add(row, fresh=False)
                ready.extend(stage.follow(unit, row))
        progress.update(tally.ran + tally.reused, max(total, tally.ran + tally.reused))
        if not todo:
            return
        for name, outcome in stage.run(list(todo.values())):
            if name not in todo:
                raise PluginError(f"a result came back for {name!r}, which was not asked for or has one already")
            unit = todo.pop(name)
            row = Row(keys[name], name, outcome.payload, outcome.failure)
            try:
                ledger.append([row])
            except (TypeError, ValueError) as error:
                raise PluginError(f"the result for {name!r} is not JSON: {error}") from error
            tally.add(row, fresh=True)
            ready.extend(stage.follow(unit, row))
            progress.update(tally.ran + tally.reused, max(total, tally.ran + tally.reused))
        if todo:
            raise PluginError(f"no result came back for {len(todo)} units, the first is {next(iter(todo))!r}")
