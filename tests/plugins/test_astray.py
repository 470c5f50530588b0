"""Training over TRL that goes astray ends with the last policy that was in order; what PPO and online DPO do then is in
their own tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from training import Context, Interrupted, same, turns

from cai_core.errors import CAIError, UserError
from cai_core.testing.rl import LetterE
from cai_core.testing.tiny import tiny_model
from cai_core.types.prompts import Prompt
from cai_core.types.reward import Exchange, NoReward, Preference
from cai_core.types.rl import snapshot_folder
from cai_core.types.trainer import TrainResult
from cai_plugins.rl.astray import trouble
from cai_plugins.rl.plugin import DPOOptions, GRPOOptions, RLOOOptions, make_dpo, make_grpo, make_rloo

PROMPTS = [Prompt(f"p{i}", turns(f"How do I bake {i} breads?")) for i in range(4)]
PAIRS = [Preference(f"c{i}", turns(f"How do I bake {i} breads?"), "Mix flour.", "No way!", 0.9) for i in range(4)]
MORE = ("grpo without KL", "grpo with adapters", "dpo with adapters")
KINDS = ["grpo", "dpo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("rloo", *MORE))]
KL = {"dpo": "kl_reverse", "dpo with adapters": "kl_reverse"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny", hidden=16)


class Short:
    """Rewards answers for saying nothing."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [-float(len(exchange.response)) for exchange in exchanges]


def train(
    kind: str, folder: Path, policy: Path, *, reward: Any = None, heldout: Any = None, steps: int = 8,
    stop_at: int | None = None, **changed: Any,
) -> TrainResult:  # fmt: skip
    name, _, how = kind.partition(" ")
    context = Context(folder / "w", stop_at=stop_at)
    context.labels, context.heldout = PAIRS, heldout
    options = {"learning_rate": 3e-2, "save_steps": 1, "lora": {} if "adapters" in how else None, **changed}
    group = {"steps": steps, "prompts_per_step": 2, "samples_per_prompt": 6, "max_new_tokens": 6, **options}
    algorithm: Any
    if name == "dpo":
        algorithm = make_dpo(DPOOptions(**{"epochs": steps, "batch_size": 4, **options}), context)
    elif name == "grpo":
        algorithm = make_grpo(GRPOOptions(**{"beta": 0.0 if "without" in how else 0.01, **group}), context)
    else:
        algorithm = make_rloo(RLOOOptions(**group), context)
    given = NoReward() if name == "dpo" else reward or LetterE()
    return algorithm.train(policy, PROMPTS, given, folder / "out")  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_an_exploding_kl_ends_with_the_last_policy_that_was_in_order(kind: str, model: Path, tmp_path: Path) -> None:
    """The limit is one that the unlimited training crosses for the first time at a known step."""
    # Without a limit nothing measures the KL of a training that has none in its loss.
    free = train(kind, tmp_path / "free", model, max_kl=1e9)
    kls = [row[KL.get(kind, "kl")] for row in free.curve]
    at = next(i for i, kl in enumerate(kls) if i >= 2 and kl > max(kls[:i]))
    limit = (max(kls[:at]) + kls[at]) / 2
    assert limit > 0
    result = train(kind, tmp_path / "held", model, max_kl=limit)
    assert (result.metrics["stopped"], result.metrics["steps"]) == (at + 1, at - 1)
    assert any(f"stopped at step {at + 1} of 8" in note and "max_kl" in note for note in result.notes)
    assert [row[KL.get(kind, "kl")] for row in result.curve] == kls[: at + 1]
    train(kind, tmp_path / "short", model, max_kl=1e9, steps=at - 1)
    assert same(tmp_path / "held" / "out", tmp_path / "short" / "out")
    with pytest.raises(CAIError, match="no earlier checkpoint is known to be good"):
        train(kind, tmp_path / "none", model, max_kl=limit, save_steps=at)
    # A restart from the checkpoint that was not good ends as the run did.
    with pytest.raises(Interrupted):
        train(kind, tmp_path / "again", model, max_kl=limit, stop_at=at + 1)
    assert train(kind, tmp_path / "again", model, max_kl=limit).curve == result.curve
    assert same(tmp_path / "again" / "out", tmp_path / "held" / "out")


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_answers_that_become_empty_end_it(kind: str, model: Path, tmp_path: Path) -> None:
    """A reward for saying nothing: the policy learns to end at once. Fewer samples seldom hold such an end at first."""
    options = {"steps": 60, "max_new_tokens": 4, "max_kl": None, "beta": 0.0, "reward": Short()}
    options |= {"samples_per_prompt": 32, "learning_rate": 1e-2}
    result = train(kind, tmp_path, model, max_empty=0.5, **options)
    assert result.curve[-1]["empty"] >= 0.5 > max(row["empty"] for row in result.curve[:-1])
    assert result.metrics["steps"] == result.metrics["stopped"] - 2
    assert any("of the answers are empty, max_empty is 0.5" in note for note in result.notes)
    with pytest.raises(UserError, match="first 64 answers are empty"):
        train(kind, tmp_path / "b", tmp_path / "out", max_empty=0.01, **options)


def test_batches_that_are_used_twice(model: Path, tmp_path: Path) -> None:
    """Checkpoints fall between batches: the last good one is that before the batch, or before the one before it."""
    options = {"updates_per_batch": 2, "steps": 12, "reward": LetterE()}
    free = train("rloo", tmp_path / "free", model, max_kl=1e9, **options)
    kls = [row["kl"] for row in free.curve]
    at = next(i for i, kl in enumerate(kls) if i >= 4 and kl > max(kls[:i]))
    assert at % 2 == 0, "RLOO's is measured when a batch is drawn"
    result = train("rloo", tmp_path / "held", model, max_kl=(max(kls[:at]) + kls[at]) / 2, **options)
    assert (result.metrics["stopped"], result.metrics["steps"]) == (at + 1, at - 2)
    train("rloo", tmp_path / "short", model, max_kl=1e9, **{**options, "steps": at - 2})
    assert same(tmp_path / "held" / "out", tmp_path / "short" / "out")


@pytest.mark.parametrize("kind", ["grpo", "dpo"])
def test_the_best_look_is_the_result_where_there_is_one(kind: str, model: Path, tmp_path: Path) -> None:
    class Given(Short):
        """Likes the policy as given: all later looks are worse."""

        looks = 0

        def score(self, exchanges: Sequence[Exchange]) -> list[float]:
            self.looks += 1
            return [-self.looks + 0.001 * len(exchange.response) for exchange in exchanges]

    looks = {"validation": {"every": 1, "prompts": 1, "samples": 2, "patience": None}, "prompts_per_step": 1}
    if kind == "dpo":
        looks.pop("prompts_per_step")
    result = train(kind, tmp_path, model, heldout=Given(), max_kl=1e-3, **looks)
    assert result.metrics["validation_best"] == 0
    assert result.metrics["stopped"] < 8
    assert same(tmp_path / "out", model)
    if kind == "dpo":  # its length is that of the pairs
        return
    last = int(result.metrics["stopped"])
    ends = tmp_path / "trouble in the last step"
    kept = {**looks, "steps": last, "snapshots": (last - 1, last)}
    result = train(kind, ends, model, heldout=Given(), max_kl=1e-3, **kept)
    assert f"training ended after step {last - 1}: its result stands for snapshot {last}" in result.notes
    assert same(ends / snapshot_folder(last), model)
    assert not same(ends / snapshot_folder(last - 1), model)


@pytest.mark.parametrize("kind", ["grpo", "rloo", "dpo"])
def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    kind: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same command goes on from there."""
    from cai_plugins.rl import dpo, grpo, rloo

    trainer = {"grpo": grpo._Trainer, "rloo": rloo._Trainer, "dpo": dpo.SoftDPOTrainer}[kind]
    honest = trainer.compute_loss

    def poisoned(self: Any, *given: Any, **named: Any) -> Any:
        loss = honest(self, *given, **named)
        return loss * (math.nan if self.state.global_step == 2 else 1)

    monkeypatch.setattr(trainer, "compute_loss", poisoned)
    with pytest.raises(CAIError, match=r"training stopped at step 3: \w+ is nan"):
        train(kind, tmp_path, model, steps=4)
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in (tmp_path / "w").rglob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    monkeypatch.setattr(trainer, "compute_loss", honest)
    train(kind, tmp_path, model, steps=4)
    train(kind, tmp_path / "whole", model, steps=4)
    assert same(tmp_path / "out", tmp_path / "whole" / "out")


def test_the_kl_without_one_in_the_loss_is_that_of_the_samples(model: Path, tmp_path: Path) -> None:
    """At the first step the policy is the reference; then it is what TRL finds where the loss has a little of it."""
    torch.manual_seed(0)
    ours = train("rloo", tmp_path / "a", model, beta=0.0, steps=2)
    theirs = train("rloo", tmp_path / "b", model, beta=1e-9, steps=2)
    assert ours.curve[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert ours.curve[1]["kl"] == pytest.approx(theirs.curve[1]["kl"], rel=1e-3)
    assert "kl" not in train("rloo", tmp_path / "c", model, beta=0.0, steps=2, max_kl=None).curve[0]


def test_what_is_trouble() -> None:
    assert trouble({}, 1.0, 0.5) == trouble({"kl": None}, 1.0) == trouble({"kl": 1.0, "empty": 0.4}, 1.0, 0.5) == ""
    assert trouble({"kl": 1e9, "empty": 1.0}, None) == ""
    assert "not numbers" in trouble({"kl": math.nan}, None)
    assert "infinite" in trouble({"kl": math.inf}, None)
    assert "above max_kl 1" in trouble({"kl": math.inf}, 1.0)
    assert "50% of the answers are empty" in trouble({"kl": 0.0, "empty": 0.5}, 1.0, 0.5)
