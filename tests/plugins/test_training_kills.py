"""A training that is killed with SIGKILL at a random moment and started again ends with the weights and the curve of
one that ran through."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import KINDS, MORE, SNAPSHOTS, finished, killed, start
from training import same

from cai_core.testing.tiny import tiny_model

STEPS = 12


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)])
def test_killed_and_started_again_it_ends_with_the_same_weights(kind: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny")
    steps, curve = finished(start(kind, model, tmp_path / "w1", tmp_path / "straight/model"))
    last = steps[-1]
    assert steps == list(range(1, last + 1))
    assert last == STEPS or kind == "dpo-watched", "looks take pairs away"
    when = killed(start(kind, model, tmp_path / "w2", tmp_path / "out/model"), last)
    again, resumed = finished(start(kind, model, tmp_path / "w2", tmp_path / "out/model"))
    assert again[0] > 1, f"it went on instead of starting anew ({when})"
    assert again[-1] == last
    assert resumed == curve, when
    for kept in ("model", *SNAPSHOTS.get(kind.partition("-")[0], ())):
        assert same(tmp_path / "straight" / kept, tmp_path / "out" / kept), f"{kept}, {when}"
