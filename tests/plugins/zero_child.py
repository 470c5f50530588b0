"""``ranks_child.py`` under DeepSpeed on a CPU, for which it has an accelerator of its own. accelerate would start plain
data parallel there: it is told that it has accelerators with the gloo backend. Each training checks that the parts are
in their processes."""

from __future__ import annotations

import os
from typing import Any

import ranks_child
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from transformers import TrainerCallback

from cai_plugins._torch import callbacks
from cai_plugins._torch.ranks import disconnect, rank
from cai_plugins._torch.zero import ZeroPart
from cai_plugins.rl import learner

PartialState._prepare_backend = lambda self, *given: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
STAGE = int(os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"])
checked = 0


def check(model: Any, optimizer: Any) -> None:
    """Half of the weights lies here in stage 3, half of the optimizer's numbers in either."""
    global checked
    learns = [p for p in model.parameters() if p.requires_grad]
    if STAGE == 3:
        assert isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3)
        here = sum(p.ds_tensor.numel() for p in model.parameters())
        whole = sum(p.ds_numel for p in model.parameters())
        assert 0.4 * whole < here < 0.6 * whole, (here, whole)
    else:
        assert isinstance(optimizer, DeepSpeedZeroOptimizer)
        here = sum(p.numel() for p in optimizer.single_partition_of_fp32_groups)
        whole = sum(p.numel() for p in learns)
        assert 0.4 * whole < here < 0.6 * whole + 64, (here, whole)
    checked += 1


class Sharded(TrainerCallback):
    """Checks after each step."""

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        check(model, optimizer.optimizer)


def run(trainer: Any, *given: Any) -> Any:
    trainer.add_callback(Sharded())
    return before(trainer, *given)


def arguments(*given: Any, **named: Any) -> dict[str, Any]:
    """As on a GPU, in float32."""
    return {**plain(*given, **named), "use_cpu": False}


def step(part: Any) -> float:
    """Of our own loops, which are no ``Trainer``."""
    norm = step_before(part)
    check(part.model.module, part.model.optimizer)
    return norm


before, plain, step_before = callbacks.run, callbacks.arguments, ZeroPart.step

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    callbacks.connect = lambda device: PartialState()  # type: ignore[assignment]
    callbacks.run, callbacks.arguments = run, arguments
    learner.connect = callbacks.connect
    learner.Accelerator = lambda cpu, **given: Accelerator(**given)  # type: ignore[misc,assignment]
    ZeroPart.step = step  # type: ignore[method-assign]
    ranks_child.train_all(rank())
    assert checked > 1
    disconnect()
