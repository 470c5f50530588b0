"""``ranks_child.py`` under FSDP on a CPU. accelerate has none there: it falls back to plain data parallel. Here it is
told that it has accelerators with the gloo backend, so that what shards, gathers and saves on a GPU runs, with torch's
own FSDP2; and each training checks that no process had all of what it trains."""

from __future__ import annotations

from typing import Any

import ranks_child
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from cai_plugins._torch import callbacks
from cai_plugins._torch.parts import Part
from cai_plugins._torch.ranks import disconnect, rank
from cai_plugins.rl import ppo

PartialState._prepare_backend = lambda self, *given: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]


checked = 0


def check(model: Any) -> None:
    """About half of the weights lies here, and every one that is trained is in parts."""
    global checked
    here = [p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor)]
    whole = sum(p.numel() for p in model.parameters())
    assert 0 < sum(here) <= 0.6 * whole, (sum(here), whole)
    assert all(isinstance(p, DTensor) for p in model.parameters() if p.requires_grad)
    checked += 1


class Sharded(TrainerCallback):
    """Checks after each step."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        check(model)


def run(trainer: Any, *given: Any) -> Any:
    trainer.add_callback(Sharded())
    return before(trainer, *given)


before = callbacks.run


def step(part: Any) -> float:
    """Of our own loops, which are no ``Trainer``: the model, where it is not a small head, and its optimizer."""
    norm = step_before(part)
    if not isinstance(part.model, ppo._Head):
        check(part.model)
        assert all(isinstance(part.optimizer.state[p]["exp_avg_sq"], DTensor) for p in part.weights.values())
    return norm


step_before = Part.step

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    import cai_plugins.rewards.preference
    import cai_plugins.rl.dpo
    import cai_plugins.rl.grouped
    import cai_plugins.trainers.sft

    for module in (
        cai_plugins.rewards.preference, cai_plugins.rl.dpo, cai_plugins.rl.grouped, cai_plugins.trainers.sft,
    ):  # fmt: skip
        module.run = run
    Part.step = step  # type: ignore[method-assign]
    ranks_child.train_all(rank())
    assert checked > 1
    disconnect()
