"""Trainings in processes of their own (``train_child.py``), and their end by SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

# At steps that have no checkpoint otherwise, where there are such.
SNAPSHOTS = {
    **{kind: ["snapshots/5"] for kind in ("ppo", "dpo", "online_dpo")},
    **{kind: ["snapshots/4"] for kind in ("grpo", "rloo")},
}
KINDS = ["sft", "preference", "ppo", "grpo"]
MORE = ["dpo", "rloo", "online_dpo", *(f"{kind}-watched" for kind in ("ppo", "dpo", "grpo", "rloo", "online_dpo"))]


def start(kind: str, model: Path, workdir: Path, out: Path, device: str = "cpu") -> subprocess.Popen[str]:
    child = str(Path(__file__).parent / "train_child.py")
    command = [sys.executable, child, kind, str(model), str(workdir), str(out), device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finished(process: subprocess.Popen[str]) -> tuple[list[int], str]:
    """The steps that it reported, and its curve as JSON."""
    output, _ = process.communicate()
    assert process.returncode == 0
    lines = output.splitlines()
    (curve,) = [line for line in lines if line.startswith("curve ")]
    return [int(line.split()[1]) for line in lines if line.startswith("step ")], curve.removeprefix("curve ")


def killed(process: subprocess.Popen[str], last: int) -> str:
    """Kill it at a random moment after its fourth of ``last`` steps; returns which that was."""
    seed = int.from_bytes(os.urandom(4), "big")
    rng = random.Random(seed)
    at, delay = rng.randrange(4, last - 1), rng.uniform(0, 0.05)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == f"step {at}":
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL, "it was killed before its end"
    return f"seed {seed}: killed {delay:.3f} s after step {at}"
