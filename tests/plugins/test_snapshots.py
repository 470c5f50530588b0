"""Policies kept on the way are those of shorter trainings, whatever algorithm, adapters or not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from training import Context, same, turns

from cai_core.errors import UserError
from cai_core.testing.rl import LetterE
from cai_core.testing.tiny import tiny_model
from cai_core.types.prompts import Prompt
from cai_core.types.reward import NoReward, Preference
from cai_core.types.rl import snapshot_folder
from cai_core.types.trainer import TrainResult
from cai_plugins.rl import plugin
from cai_plugins.rl.snapshots import write_snapshots

PROMPTS = [Prompt(f"p{i}", turns(f"How do I bake {i} breads?")) for i in range(4)]
PAIRS = [Preference(f"c{i}", turns(f"How do I bake {i} breads?"), "Mix flour.", "No way!", 0.9) for i in range(4)]
GROUP = {"prompts_per_step": 2, "samples_per_prompt": 4}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ppo": (plugin.PPOOptions, plugin.make_ppo, {**GROUP, "minibatches": 2}),
    "grpo": (plugin.GRPOOptions, plugin.make_grpo, GROUP),
    "online_dpo": (plugin.OnlineDPOOptions, plugin.make_online_dpo, {"prompts_per_step": 4}),
    "dpo": (plugin.DPOOptions, plugin.make_dpo, {"batch_size": 4}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny", hidden=16)


def train(kind: str, model: Path, folder: Path, steps: int, **changed: Any) -> TrainResult:
    options, make, own = KINDS[kind]
    context = Context(folder / "w")
    context.labels = PAIRS
    length = {"epochs": steps} if kind == "dpo" else {"steps": steps, "max_new_tokens": 6}
    algorithm = make(options(**{"learning_rate": 3e-2, "save_steps": 100, **own, **length, **changed}), context)
    reward = NoReward() if kind == "dpo" else LetterE()
    return algorithm.train(model, PROMPTS, reward, folder / "model")  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, {}], ids=["all weights", "adapters"])
def test_a_snapshot_is_the_result_of_a_shorter_training(kind: str, lora: Any, model: Path, tmp_path: Path) -> None:
    train(kind, model, tmp_path / "long", 4, lora=lora, snapshots=(1, 2))
    for step in (1, 2):
        train(kind, model, tmp_path / str(step), step, lora=lora)
        assert same(tmp_path / "long" / snapshot_folder(step), tmp_path / str(step) / "model")
    assert not same(tmp_path / "1/model", tmp_path / "2/model")
    assert not same(tmp_path / "long/model", tmp_path / "2/model")


def test_for_steps_that_training_did_not_reach_stands_its_result(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("w")
    options: Any = SimpleNamespace(snapshots=(4,), lora=None)
    notes = write_snapshots(options, 3, tmp_path, tmp_path, "cpu", None, tmp_path / "model")
    assert notes == ["training ended after step 3: its result stands for snapshot 4"]
    assert (tmp_path / snapshot_folder(4) / "weights").read_text() == "w"


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_beyond_the_last_is_told_before_training(kind: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="snapshot 3 is beyond the last step, 2") as raised:
        train(kind, model, tmp_path, 2, snapshots=(1, 3))
    assert raised.value.where == "rl.snapshots"
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_a_step_within_a_batch_of_samples_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="snapshot 3 is in the middle of a batch") as raised:
        train("grpo", model, tmp_path, 4, snapshots=(3,), updates_per_batch=2)
    assert raised.value.where == "rl.snapshots"


@pytest.mark.parametrize("steps", [(0,), (3, 2), (2, 2), (-1, 2)])
def test_steps_rise_from_one(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="in rising order"):
        plugin.PPOOptions(snapshots=steps)
