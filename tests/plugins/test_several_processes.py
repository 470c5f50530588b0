"""Two processes learn what one learns: the same curve and weights up to rounding, whatever is in the last batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks_child
from training import distance, weights

from cai_core.testing.tiny import tiny_model


def launched(model: Path, folder: Path, *kinds: str) -> None:
    """Train in two processes on the CPU, connected by gloo."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    child = str(Path(__file__).parent / "ranks_child.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, child, str(model), str(folder), *kinds], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def both(tmp_path: Path, *kinds: str) -> None:
    """Compare one process, which accumulates over micro-batches, with two."""
    model = tiny_model(tmp_path / "tiny", hidden=16)
    launched(model, tmp_path / "two", *kinds)
    for kind in kinds:
        (tmp_path / "one" / kind).mkdir(parents=True)
        ranks_child.train(kind, model, tmp_path / "one" / kind, 0)
        one, first, second = (
            json.loads((tmp_path / part).read_text())
            for part in (f"one/{kind}/0.json", f"two/{kind}/0.json", f"two/{kind}/1.json")
        )
        assert len(one["curve"]) > 1, kind
        assert first["curve"] == second["curve"], f"{kind}: the processes agree on what they saw"
        same(one["curve"], first["curve"], kind)
        assert one["notes"] == [note for note in first["notes"]] or kind.startswith("ppo"), kind
        before, after = weights(model), weights(tmp_path / f"one/{kind}/out-0")
        moved = max((after[n] - before[n]).abs().max().item() for n in after if n in before)
        # Adam divides by the size of a gradient, so that one which is rounding moves a weight either way.
        assert distance(tmp_path / f"one/{kind}/out-0", tmp_path / f"two/{kind}/out-0") < 0.02 * moved, kind
        assert not (tmp_path / f"two/{kind}/out-1").exists(), f"{kind}: the first process alone writes"


def same(one: list[dict[str, Any]], two: list[dict[str, Any]], kind: str) -> None:
    assert len(one) == len(two), kind
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys(), kind
        for name in a.keys() - {"token_accuracy"}:  # TRL's is a mean over micro-batches, whatever they are
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-4), f"{kind}: {name} at {a['step']}"


def test_sft_preference_model_and_ppo(tmp_path: Path) -> None:
    both(tmp_path, "sft", "preference", "ppo")


@pytest.mark.slow
def test_looks_are_the_same_in_all_processes(tmp_path: Path) -> None:
    both(tmp_path, "ppo-watched", "dpo-watched")
    for kind in ("ppo-watched", "dpo-watched"):
        one, first, second = (
            {k: v for k, v in json.loads((tmp_path / part).read_text())["metrics"].items() if k.startswith("look_")}
            for part in (f"one/{kind}/0.json", f"two/{kind}/0.json", f"two/{kind}/1.json")
        )
        assert first == second
        assert one == pytest.approx(first, rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_other_ways_to_train(tmp_path: Path) -> None:
    both(tmp_path, "sft-packed", "preference-head", "dpo", "ppo-lora")
