"""The unit loop: nothing recorded is run again, follow-ups chain, failures are rows, contract breaches are named."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_core.errors import PluginError
from cai_core.pipeline.executor import LocalExecutor, Outcome, Unit
from cai_core.store.ledger import Row, SQLiteLedger
from cai_core.types.records import UnitFailure


class Silent:
    def update(self, done: int, total: int, note: str = "") -> None:
        assert done <= total


class Chain:
    """``n`` chains of ``depth`` steps; step text depends on the step before. Stops after ``budget`` runs."""

    at_once: int | None = None

    def __init__(self, n: int, depth: int, budget: int = 10**9, fail: str = "") -> None:
        self.n, self.depth, self.budget, self.fail = n, depth, budget, fail
        self.asked: list[str] = []
        self.results: dict[str, str] = {}

    def initial(self) -> Iterable[Unit[tuple[int, int, str]]]:
        for i in range(self.n):
            yield self._unit(i, 0, "")

    def _unit(self, chain: int, step: int, before: str) -> Unit[tuple[int, int, str]]:
        return Unit(f"{chain}/{step}", {"chain": chain, "step": step, "before": before}, (chain, step, before))

    def run(self, units: Iterator[Unit[tuple[int, int, str]]]) -> Iterator[tuple[str, Outcome]]:
        for unit in reversed(list(itertools.islice(units, self.at_once))):
            if self.budget == 0:
                raise KeyboardInterrupt
            self.budget -= 1
            self.asked.append(unit.name)
            if unit.name == self.fail:
                yield unit.name, Outcome({}, UnitFailure("unparseable", "nothing to read"))
            else:
                yield unit.name, Outcome({"text": f"{unit.work[2]}>{unit.name}", "tokens_out": 2})

    def follow(self, unit: Unit[tuple[int, int, str]], row: Row) -> Iterable[Unit[tuple[int, int, str]]]:
        chain, step, _ = unit.work
        if row.failure:
            return
        self.results[unit.name] = str(row.payload["text"])
        if step + 1 < self.depth:
            yield self._unit(chain, step + 1, str(row.payload["text"]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.lists(st.integers(0, 9), max_size=5), st.integers(1, 5))
def test_interrupted_anywhere_then_resumed_equals_uninterrupted(
    n: int, depth: int, stops: list[int], chunk: int
) -> None:
    import tempfile

    whole = Chain(n, depth)
    with tempfile.TemporaryDirectory() as folder:
        LocalExecutor().run(whole, SQLiteLedger(Path(folder) / "a.sqlite"), Silent(), total=n * depth)
        asked: list[str] = []
        for budget in stops:
            part = Chain(n, depth, budget)
            with contextlib.suppress(KeyboardInterrupt):
                LocalExecutor(chunk).run(part, SQLiteLedger(Path(folder) / "b.sqlite"), Silent(), total=n * depth)
            asked += part.asked
        last = Chain(n, depth)
        tally = LocalExecutor(chunk).run(last, SQLiteLedger(Path(folder) / "b.sqlite"), Silent(), total=n * depth)
        asked += last.asked
    assert last.results == whole.results
    assert sorted(asked) == sorted(whole.asked), "every unit was asked for exactly once"
    assert tally.ran + tally.reused == n * depth
    assert tally.tokens_out == 2 * n * depth


def test_a_failure_is_a_row_that_ends_its_chain_and_is_not_retried(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "l.sqlite")
    stage = Chain(2, 3, fail="1/1")
    tally = LocalExecutor().run(stage, ledger, Silent(), total=6)
    assert dict(tally.failed) == {"unparseable": 1}
    assert tally.as_info()["ok"] == 4
    again = Chain(2, 3, fail="1/1")
    assert LocalExecutor().run(again, ledger, Silent(), total=6).ran == 0
    assert again.asked == []


class Bad(Chain):
    def __init__(self, names: list[str]) -> None:
        super().__init__(2, 1)
        self.names = names

    def run(self, units: Iterator[Unit[tuple[int, int, str]]]) -> Iterator[tuple[str, Outcome]]:
        list(units)
        for name in self.names:
            yield name, Outcome({})

    def follow(self, unit: Unit[tuple[int, int, str]], row: Row) -> Iterable[Unit[tuple[int, int, str]]]:
        return ()


class Lazy(Chain):
    """Takes the next unit only when it has given an outcome, as a backend with two places does."""

    def run(self, units: Iterator[Unit[tuple[int, int, str]]]) -> Iterator[tuple[str, Outcome]]:
        running = list(itertools.islice(units, 2))
        while running:
            unit = running.pop(0)
            self.asked.append(unit.name)
            yield unit.name, Outcome({"text": f"{unit.work[2]}>{unit.name}"})
            running += itertools.islice(units, 2 - len(running))


def test_follow_ups_come_before_new_units_while_the_stage_runs(tmp_path: Path) -> None:
    stage = Lazy(6, 3)
    tally = LocalExecutor().run(stage, SQLiteLedger(tmp_path / "l.sqlite"), Silent(), total=18)
    assert tally.ran == 18
    # Two places, two chains at a time: no chain begins before one of them ends.
    assert stage.asked[:6] == ["0/0", "1/0", "0/1", "1/1", "0/2", "1/2"]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_stage_holds_no_more_units_than_it_may(tmp_path: Path, most: int) -> None:
    held: list[int] = []

    class Greedy(Chain):
        def run(self, units: Iterator[Unit[tuple[int, int, str]]]) -> Iterator[tuple[str, Outcome]]:
            taken = list(units)
            held.append(len(taken))
            yield from super().run(iter(taken))

    stage = Greedy(7, 2)
    LocalExecutor(most=most).run(stage, SQLiteLedger(tmp_path / "l.sqlite"), Silent(), total=14)
    assert max(held) == most
    assert len(stage.asked) == 14


def test_a_stage_that_takes_nothing_is_a_fault(tmp_path: Path) -> None:
    class Idle(Chain):
        def run(self, units: Iterator[Unit[tuple[int, int, str]]]) -> Iterator[tuple[str, Outcome]]:
            return iter(())

    with pytest.raises(PluginError, match="takes no unit"):
        LocalExecutor().run(Idle(1, 1), SQLiteLedger(tmp_path / "l.sqlite"), Silent(), total=1)


@pytest.mark.parametrize("names", [["0/0"], ["0/0", "0/0", "1/0"], ["0/0", "9/9", "1/0"]])
def test_missing_double_and_foreign_results_are_the_plugins_fault(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(PluginError):
        LocalExecutor().run(Bad(names), SQLiteLedger(tmp_path / "l.sqlite"), Silent(), total=2)
