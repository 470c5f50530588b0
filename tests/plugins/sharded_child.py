"""``ranks_child.py`` under FSDP on a CPU. accelerate has none there: it falls back to plain data parallel. Here it is
told that it has accelerators with the gloo backend, so that what shards, gathers and saves on a GPU runs, with torch's
own FSDP2; and each training checks that no process had the whole model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ranks_child
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from cai_plugins._torch import callbacks
from cai_plugins._torch.ranks import disconnect, rank

PartialState._prepare_backend = lambda self, *given: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]


class Sharded(TrainerCallback):
    """After each step: about half of the weights lies here, and every one that is trained is in parts."""

    checked = 0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        here = [p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor)]
        whole = sum(p.numel() for p in model.parameters())
        assert 0 < sum(here) <= 0.6 * whole, (sum(here), whole)
        assert all(isinstance(p, DTensor) for p in model.parameters() if p.requires_grad)
        Sharded.checked += 1


def run(trainer: Any, *given: Any) -> Any:
    trainer.add_callback(Sharded())
    return before(trainer, *given)


before = callbacks.run

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    import cai_plugins.rewards.preference
    import cai_plugins.rl.dpo
    import cai_plugins.trainers.sft

    for module in (cai_plugins.rewards.preference, cai_plugins.rl.dpo, cai_plugins.trainers.sft):
        module.run = run
    for name in sys.argv[3:]:
        target = Path(sys.argv[2]) / name
        target.mkdir(parents=True, exist_ok=True)
        ranks_child.train(name, Path(sys.argv[1]), target, rank())
    assert Sharded.checked > 1
    disconnect()
