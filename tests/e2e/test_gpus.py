"""Training on two GPUs: plain data parallel and FSDP. These tests have to be asked for (``-m gpu``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from homes import Home, home_with_pairs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")]

RECIPE = """
name: two
models: {base: smollm2-135m-instruct}
device: cuda
prompts: {name: builtin, red_team: 4, helpful: 0, heldout_red_team: 1, heldout_helpful: 1, heldout_borderline: 1}
pairs: {path: pairs.jsonl}
label: {labeler: {name: human, path: pairs.jsonl}, audit: null}
reward: {name: preference, batch_size: 4, helpful: none, heldout: 0, epochs: 2}
rl: {name: ppo, steps: 2, prompts_per_step: 2, samples_per_prompt: 4, minibatches: 2, max_new_tokens: 8}
report: null
"""
FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_processes: 2
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_state_dict_type: FULL_STATE_DICT
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "fsdp.yaml").write_text(FSDP, encoding="utf-8")
    return home_with_pairs(tmp_path, RECIPE)


def found(home: Home, store: str, kind: str, launch: str) -> Path:
    home.cai("run", "r.yaml", "--store", store, "-o", f"launch={launch}")
    (path,) = (home.folder / store / "artifacts").glob(f"{kind}-*")
    return path


def rewards(path: Path) -> list[float]:
    return [row["loss"] for row in json.loads((path / "training.json").read_text(encoding="utf-8"))["curve"]]


@pytest.mark.parametrize(
    ("launch", "ran_as"),
    [("2", "MULTI_GPU"), ("{config: fsdp.yaml}", "FSDP")],
    ids=["data parallel", "fsdp"],
)
def test_two_gpus_learn_what_one_learns(home: Home, launch: str, ran_as: str) -> None:
    """Up to what bfloat16 rounds. Under FSDP the training itself refuses a model that is not sharded."""
    one, two = found(home, "one", "reward", "null"), found(home, "two", "reward", launch)
    info = json.loads((two / "manifest.json").read_text(encoding="utf-8"))["info"]
    assert info["launch"]["ran_as"] == ran_as
    assert rewards(two) == pytest.approx(rewards(one), abs=0.02)
    model = AutoModelForSequenceClassification.from_pretrained(two / "model")
    assert sum(p.numel() for p in model.parameters()) > 10_000
    (policy,) = (home.folder / "two" / "artifacts").glob("rl-*")
    info = json.loads((policy / "manifest.json").read_text(encoding="utf-8"))["info"]
    assert info["launch"]["ran_as"] == ran_as
