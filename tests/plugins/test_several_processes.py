"""Two processes learn what one learns: the same curve and weights up to rounding, whatever is in the last batch."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ranks_child
from training import distance, weights
from training import same as bitwise

from cai_core.errors import UserError
from cai_core.testing.tiny import tiny_model
from cai_core.types.rl import snapshot_folder

FSDP = [
    "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP",
    "--fsdp_state_dict_type", "FULL_STATE_DICT", "--fsdp_cpu_ram_efficient_loading", "false",
]  # fmt: skip


LAUNCHES: list[dict[str, Any]] = [{}, {"sharded": True}, {"stage": 2}, {"stage": 3}]


def runs_here(launch: dict[str, Any]) -> None:
    """Leaves the test out where DeepSpeed is asked for and not installed."""
    if launch.get("stage"):
        pytest.importorskip("deepspeed")


def zero(stage: int, folder: Path) -> list[str]:
    """DeepSpeed's stages: 2 shares out gradients and the optimizer's state, 3 the weights too."""
    own = {"zero_stage": stage, "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
           "zero3_init_flag": False, "zero3_save_16bit_model": True}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "zero.json"
    path.write_text(json.dumps({"distributed_type": "DEEPSPEED", "deepspeed_config": own}), encoding="utf-8")
    return ["--config_file", str(path), "--use_deepspeed"]


def start(
    model: Path, folder: Path, *kinds: str, sharded: bool = False, asked: bool | None = None, stage: int = 0
) -> subprocess.Popen[str]:
    """Train in two processes on the CPU, connected by gloo. asked: whether the launch asks for FSDP, if that is not
    whether it gets it. stage: of DeepSpeed, which then shards."""
    fsdp = sharded if asked is None else asked
    how = zero(stage, folder) if stage else FSDP if fsdp else ["--multi_gpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *how]
    command += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    child = str(Path(__file__).parent / f"{'zero' if stage else 'sharded' if sharded else 'ranks'}_child.py")
    on_cpu = {"ACCELERATE_TORCH_DEVICE": "cpu"} if sharded or stage else {"ACCELERATE_USE_CPU": "true"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **on_cpu}
    return subprocess.Popen(
        [*command, child, str(model), str(folder), *kinds], stderr=subprocess.PIPE, text=True, env=environment
    )


def launched(model: Path, folder: Path, *kinds: str, sharded: bool = False, stage: int = 0) -> None:
    process = start(model, folder, *kinds, sharded=sharded, stage=stage)
    _, said = process.communicate()
    assert process.returncode == 0, said


def both(tmp_path: Path, *kinds: str, sharded: bool = False, stage: int = 0) -> None:
    """Compare one process, which accumulates over micro-batches, with two."""
    model = tiny_model(tmp_path / "tiny", hidden=16)
    # A training under DeepSpeed leaves its settings in the process.
    for some in [[kind] for kind in kinds] if stage else [kinds]:
        launched(model, tmp_path / "two", *some, sharded=sharded, stage=stage)
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
        assert [n for n in one["notes"] if "time:" not in n] == [n for n in first["notes"] if "time:" not in n], kind
        before, after = weights(model), weights(tmp_path / f"one/{kind}/out-0")
        # A new score head begins near zero.
        moved = max((after[n] - before.get(n, 0)).abs().max().item() for n in after)
        for made in ("out-0", *map(snapshot_folder, ranks_child.KINDS[kind][2].get("snapshots", ()))):
            # Adam divides by the size of a gradient, so that one which is rounding moves a weight either way.
            assert distance(tmp_path / f"one/{kind}/{made}", tmp_path / f"two/{kind}/{made}") < 0.02 * moved, kind
        assert not (tmp_path / f"two/{kind}/out-1").exists(), f"{kind}: the first process alone writes"


def same(one: list[dict[str, Any]], two: list[dict[str, Any]], kind: str) -> None:
    assert len(one) == len(two), kind
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys(), kind
        for name in a.keys() - {"token_accuracy"}:  # TRL's is a mean over micro-batches, whatever they are
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-4), f"{kind}: {name} at {a['step']}"


@pytest.mark.timeout(900)
def test_sft_preference_model_ppo_and_online_labels(tmp_path: Path) -> None:
    both(tmp_path, "sft", "preference", "ppo", "oaif")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
def test_looks_are_the_same_in_all_processes(launch: dict[str, Any], tmp_path: Path) -> None:
    runs_here(launch)
    watched = ("ppo-watched", "dpo-watched", "online_dpo-watched")
    both(tmp_path, *watched, **launch)
    for kind in watched:
        one, first, second = (
            {k: v for k, v in json.loads((tmp_path / part).read_text())["metrics"].items() if k.startswith("look_")}
            for part in (f"one/{kind}/0.json", f"two/{kind}/0.json", f"two/{kind}/1.json")
        )
        assert first == second
        assert one == pytest.approx(first, rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_other_ways_to_train(tmp_path: Path) -> None:
    both(tmp_path, "sft-packed", "preference-head", "dpo", "ppo-lora", "online_dpo", "oaif", "best_of_n")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
def test_grpo_draws_as_many_samples(launch: dict[str, Any], tmp_path: Path) -> None:
    """TRL seeds each process by itself, so they are others."""
    runs_here(launch)
    model = tiny_model(tmp_path / "tiny", hidden=16)
    for kind in ("grpo", "grpo-watched"):
        launched(model, tmp_path / "two", kind, **launch)
    found = json.loads((tmp_path / "two/grpo/0.json").read_text())
    assert [row["step"] for row in found["curve"]] == [1, 2]
    assert found["metrics"]["samples"] == 2 * 2 * 4
    assert not bitwise(model, tmp_path / "two/grpo/out-0")
    first, second = (json.loads((tmp_path / f"two/grpo-watched/{i}.json").read_text()) for i in range(2))
    looks = [{k: v for k, v in part["metrics"].items() if k.startswith("look_")} for part in (first, second)]
    assert looks[0] == looks[1]
    assert looks[0]["look_0_kl"] == 0
    assert looks[0]["look_2_kl"] != 0
    assert all("kl" in row for row in first["curve"])


@pytest.mark.slow
def test_sharded_weights_end_as_whole_ones(tmp_path: Path) -> None:
    """FSDP2; the child asserts after each step that either process holds half of the weights."""
    both(tmp_path, "sft", "sft-packed", "preference", "dpo", "online_dpo", "oaif", sharded=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launch", LAUNCHES[2:], ids=str)
def test_deepspeed_ends_as_one_process(launch: dict[str, Any], tmp_path: Path) -> None:
    """The child asserts after each step what is in parts."""
    runs_here(launch)
    both(tmp_path, "sft", "sft-packed", "preference", "dpo", "ppo", "ppo-lora", **launch)
    both(tmp_path / "online", "online_dpo", "oaif", "oaif-judge", **launch)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ppo_with_sharded_weights(tmp_path: Path) -> None:
    """And what one launch has begun the other goes on with: a checkpoint of PPO is the same file either way."""
    both(tmp_path, "ppo-lora", "ppo", sharded=True)
    straight = json.loads((tmp_path / "one/ppo/0.json").read_text())["curve"]
    for launch in ("one", "two"):
        (folder,) = (tmp_path / launch / "ppo/w").glob("ppo-*")
        shutil.rmtree(folder / "checkpoint-3")
        begun = (folder / "checkpoint-2/whole.json").stat().st_mtime_ns
        if launch == "one":
            launched(tmp_path / "tiny", tmp_path / launch, "ppo", sharded=True)
        else:
            ranks_child.train("ppo", tmp_path / "tiny", tmp_path / launch / "ppo", 0)
        assert (folder / "checkpoint-2/whole.json").stat().st_mtime_ns == begun
        same(straight, json.loads((tmp_path / launch / "ppo/0.json").read_text())["curve"], launch)


@pytest.mark.slow
def test_ppo_runs_sharded_or_not_at_all(tmp_path: Path) -> None:
    """On a CPU accelerate leaves the model whole and says nothing."""
    process = start(tiny_model(tmp_path / "tiny"), tmp_path / "two", "ppo", asked=True)
    _, said = process.communicate()
    assert process.returncode
    assert "the launch asks for FSDP, and accelerate runs MULTI_CPU" in said
    assert not (tmp_path / "two/ppo/0.json").exists()


@pytest.mark.slow
def test_sharded_checkpoints_are_kept_apart_from_plain_ones(tmp_path: Path) -> None:
    """Each launch begins anew in the folder of the other, and goes on in its own."""
    model = tiny_model(tmp_path / "tiny", hidden=16)
    launched(model, tmp_path / "plain", "sft")
    launched(model, tmp_path / "mixed", "sft", sharded=True)
    launched(model, tmp_path / "mixed", "sft")
    assert bitwise(tmp_path / "plain/sft/out-0", tmp_path / "mixed/sft/out-0")
    folders = {path.name.rpartition("-")[2] for path in (tmp_path / "mixed/sft/w").glob("sft-*")}
    assert len(folders) == 2
    assert "fsdp" in folders


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "launch"),
    [
        ("sft-long", {}),
        ("sft-long", {"stage": 2}),
        ("sft-long", {"stage": 3}),
        *(("ppo-long", launch) for launch in LAUNCHES),
        ("online_dpo-long", {}),
        ("online_dpo-long", {"stage": 3}),
    ],
    ids=str,
)
def test_killed_and_launched_again_they_end_with_the_same_weights(
    kind: str, launch: dict[str, Any], tmp_path: Path
) -> None:
    runs_here(launch)
    model = tiny_model(tmp_path / "tiny", hidden=16)
    launched(model, tmp_path / "straight", kind, **launch)
    process = start(model, tmp_path / "killed", kind, **launch)
    parent, checkpoints = psutil.Process(process.pid), (tmp_path / "killed" / kind / "w").glob
    while not list(checkpoints("*/checkpoint-*/whole.json")):
        assert process.poll() is None
        time.sleep(0.01)
    seed = int.from_bytes(os.urandom(4), "big")
    time.sleep(random.Random(seed).uniform(0, 0.2))
    for child in (*parent.children(recursive=True), parent):
        child.kill()
    process.communicate()
    assert not (tmp_path / "killed" / kind / "0.json").exists(), "it was killed before its end"
    launched(model, tmp_path / "killed", kind, **launch)
    curves = [json.loads((tmp_path / name / kind / "0.json").read_text())["curve"] for name in ("straight", "killed")]
    assert curves[0] == curves[1], f"seed {seed}"
    assert bitwise(tmp_path / "straight" / kind / "out-0", tmp_path / "killed" / kind / "out-0"), f"seed {seed}"


@pytest.mark.parametrize(
    ("options", "batch", "words"),
    [
        ({}, 5, "2 processes do not divide batch_size 5"),
        ({"micro_batch": 4}, 4, "micro_batch 4 does not divide a process's part of it, 2"),
        ({"micro_batch": 3}, 8, "micro_batch 3 does not divide a process's part of it, 4"),
    ],
)
def test_a_batch_that_cannot_be_shared(
    options: dict[str, Any], batch: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cai_plugins._torch.callbacks import micro_batch
    from cai_plugins._torch.options import TrainingOptions

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=words) as raised:
        micro_batch(TrainingOptions(**options), batch, "trainer", f"batch_size {batch}")
    assert raised.value.where.startswith("trainer")
    assert raised.value.hint


def test_half_a_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from cai_plugins._torch.callbacks import micro_batch
    from cai_plugins._torch.options import TrainingOptions

    assert micro_batch(TrainingOptions(), 8, "trainer", "") == 8
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert micro_batch(TrainingOptions(), 8, "trainer", "") == 4
    assert micro_batch(TrainingOptions(micro_batch=2), 8, "trainer", "") == 2
