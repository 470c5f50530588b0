"""The unit loop: claim -> run -> record. It is the pipeline's, never a plugin's.

Units stream in, rows stream out, each row is committed as it finishes, and finished units may call for new ones. What
is recorded is never run again. Memory holds one chunk of units, not the stage.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
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

    def run(self, units: Iterator[Unit[T]]) -> Iterator[tuple[str, Outcome]]:
        """(unit name, outcome) for each unit that it takes from ``units``, as they finish, in any order.

        It may take one when it has room for it: a unit that follows from an outcome already yielded is among the next
        ones, also where ``units`` had come to an end before. It need not take all; it is called again with the rest.
        """
        ...

    def follow(self, unit: Unit[T], row: Row) -> Iterable[Unit[T]]:
        """The units that this finished one calls for. Called once for every unit, run now or recorded earlier."""
        ...


class Executor(Protocol):
    """Runs the units of a stage against a ledger."""

    def run(
        self, stage: UnitStage[T], ledger: Ledger, progress: Progress, *, total: int, tally: Tally | None = None
    ) -> Tally:
        """Run until no unit is left. ``tally``: counts to go on from."""
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
    """In this process. Follow-up units go first, so that chains finish and memory stays small."""

    # Our choices: 256 keys are one query of the ledger; 8192 units are what a stage that takes all it can get holds.
    def __init__(self, chunk: int = 256, most: int = 8192) -> None:
        self.chunk = chunk
        self.most = most

    def run(
        self, stage: UnitStage[T], ledger: Ledger, progress: Progress, *, total: int, tally: Tally | None = None
    ) -> Tally:
        """See ``Executor``. ``total``: the number of units expected, for the progress bar."""
        work = _Work(stage, ledger, progress, total, self.chunk, tally or Tally())
        while work.more():
            feed = _Feed(work, self.most)
            for name, outcome in stage.run(feed):
                work.record(name, outcome)
            if work.out:
                first = next(iter(work.out))
                raise PluginError(f"no result came back for {len(work.out)} units, the first is {first!r}")
            if not feed.given:
                raise PluginError("the stage takes no unit, and there are some left")
        return work.tally


class _Feed(Generic[T]):
    """Up to ``most`` units. It ends when there is none at present, and goes on when an outcome has brought more."""

    def __init__(self, work: _Work[T], most: int) -> None:
        self.work = work
        self.most = most
        self.given = 0

    def __iter__(self) -> _Feed[T]:
        return self

    def __next__(self) -> Unit[T]:
        unit = self.work.take() if self.given < self.most else None
        if unit is None:
            raise StopIteration
        self.given += 1
        return unit


class _Work(Generic[T]):
    """Units on their way: follow-ups in ``ready``, not yet looked up in the ledger; ``waiting``, to be run; ``out``,
    handed to the stage."""

    def __init__(
        self, stage: UnitStage[T], ledger: Ledger, progress: Progress, total: int, chunk: int, tally: Tally
    ) -> None:
        self.stage = stage
        self.ledger = ledger
        self.progress = progress
        self.total = total
        self.chunk = chunk
        self.tally = tally
        self.fresh = iter(stage.initial())
        self.ready: deque[Unit[T]] = deque()
        self.waiting: deque[tuple[str, Unit[T]]] = deque()
        self.out: dict[str, tuple[str, Unit[T]]] = {}

    def more(self) -> bool:
        """Whether there is a unit to run. Goes through those that are recorded."""
        while True:
            if self.ready:
                chunk = [self.ready.popleft() for _ in range(min(self.chunk, len(self.ready)))]
                self.waiting.extendleft(reversed(self._unrecorded(chunk)))
            elif self.waiting:
                return True
            elif chunk := list(islice(self.fresh, self.chunk)):
                self.waiting.extend(self._unrecorded(chunk))
            else:
                return False

    def take(self) -> Unit[T] | None:
        """The next unit to run, follow-ups first; None when there is none at present."""
        if not self.more():
            return None
        key, unit = self.waiting.popleft()
        self.out[unit.name] = key, unit
        return unit

    def record(self, name: str, outcome: Outcome) -> None:
        """Write a result down before anything follows from it."""
        if name not in self.out:
            raise PluginError(f"a result came back for {name!r}, which was not asked for or has one already")
        key, unit = self.out.pop(name)
        row = Row(key, name, outcome.payload, outcome.failure)
        try:
            self.ledger.append([row])
        except (TypeError, ValueError) as error:
            raise PluginError(f"the result for {name!r} is not JSON: {error}") from error
        self._done(unit, row, fresh=True)

    def _unrecorded(self, chunk: Sequence[Unit[T]]) -> list[tuple[str, Unit[T]]]:
        keyed = [(unit.key, unit) for unit in chunk]
        recorded = self.ledger.done([key for key, _ in keyed])
        for key, unit in keyed:
            if key in recorded:
                self._done(unit, recorded[key], fresh=False)
        return [(key, unit) for key, unit in keyed if key not in recorded]

    def _done(self, unit: Unit[T], row: Row, *, fresh: bool) -> None:
        self.tally.add(row, fresh=fresh)
        self.ready.extend(self.stage.follow(unit, row))
        done = self.tally.ran + self.tally.reused
        self.progress.update(done, max(self.total, done))
