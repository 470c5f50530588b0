"""A training that is killed with SIGKILL at a random moment and started again ends with the weights and the curve of
one that ran through."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training import same

from cai_core.testing.tiny import tiny_model

STEPS = 12


def start(kind: str, model: Path, workdir: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).parent / "train_child.py"), kind, str(model), str(workdir), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finished(process: subprocess.Popen[str]) -> tuple[list[int], str]:
    """The steps that it reported, and its curve."""
    output, _ = process.communicate()
    assert process.returncode == 0
    lines = output.splitlines()
    (curve,) = [line for line in lines if line.startswith("curve ")]
    return [int(line.split()[1]) for line in lines if line.startswith("step ")], curve


# At steps that have no checkpoint otherwise, where there are such.
SNAPSHOTS = {
    **{kind: ["snapshots/5"] for kind in ("ppo", "dpo", "online_dpo")},
    **{kind: ["snapshots/4"] for kind in ("grpo", "rloo")},
}
KINDS = ["sft", "preference", "ppo", "grpo"]
MORE = ["dpo", "rloo", "online_dpo", *(f"{kind}-watched" for kind in ("ppo", "dpo", "grpo", "rloo", "online_dpo"))]


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)])
def test_killed_and_started_again_it_ends_with_the_same_weights(kind: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny")
    steps, curve = finished(start(kind, model, tmp_path / "w1", tmp_path / "straight/model"))
    last = steps[-1]
    assert steps == list(range(1, last + 1))
    assert last == STEPS or kind == "dpo-watched", "looks take pairs away"
    seed = int.from_bytes(os.urandom(4), "big")
    rng = random.Random(seed)
    at, delay = rng.randrange(4, last - 1), rng.uniform(0, 0.05)
    process = start(kind, model, tmp_path / "w2", tmp_path / "out/model")
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == f"step {at}":
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL, "it was killed before its end"
    again, resumed = finished(start(kind, model, tmp_path / "w2", tmp_path / "out/model"))
    assert again[0] > 1, f"it went on instead of starting anew (seed {seed}: killed {delay:.3f} s after step {at})"
    assert again[-1] == last
    assert resumed == curve, f"seed {seed}"
    for kept in ("model", *SNAPSHOTS.get(kind.partition("-")[0], ())):
        assert same(tmp_path / "straight" / kept, tmp_path / "out" / kept), (
            f"{kept}, seed {seed}: killed {delay:.3f} s after step {at}"
        )
