"""``Part`` under DeepSpeed, which shares out the optimizer's state (stage 1), gradients (2) and weights (3)."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import deepspeed
from packaging.version import Version
from torch import Tensor

from cai_core.errors import CAIError, UserError
from cai_plugins._torch.options import TrainingOptions
from cai_plugins._torch.parts import Part, save_whole
from cai_plugins._torch.ranks import world

TAG = "all"
LEAST = "0.19.8"
"""The version that this is tested with. Older ones tell of a gradient that is not finite in another way."""


class ZeroPart(Part):
    """See ``Part``. In stage 3 a weight is empty outside of the model's passes. Weights keep their types.

    plugin: accelerate's, with the launch's configuration. micro: items per ``backward``. batch: those of all
    processes per ``step``.
    """

    def __init__(
        self,
        model: Any,
        options: TrainingOptions,
        rate: float,
        updates: int,
        *,
        plugin: Any,
        device: str,
        micro: int,
        batch: int,
    ) -> None:
        if Version(deepspeed.__version__) < Version(LEAST):
            raise UserError(
                f"DeepSpeed {deepspeed.__version__} is too old for this algorithm",
                where="launch.config",
                hint=f"pip install --no-build-isolation 'deepspeed>={LEAST}'",
            )
        super().__init__(model, options, rate, updates)
        given = deepcopy(plugin.deepspeed_config)
        given |= {
            "train_batch_size": batch,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": batch // (micro * world()),
            "gradient_clipping": options.max_grad_norm,
            # AdamW as everywhere else, also where its state is kept in the CPU's memory.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": False},
            "fp16": {"enabled": False},
            # Ours around a pass it would switch off. Of no module are gradients to be rounded on their way.
            "torch_autocast": {"enabled": device != "cpu", "dtype": "bfloat16", "lower_precision_safe_modules": []},
        }
        self.model, *_ = deepspeed.initialize(model=model, optimizer=self.optimizer, config=given)

    def backward(self, loss: Tensor) -> None:
        """See ``Part``."""
        self.model.backward(loss * world(), scale_wrt_gas=False)
        if not self.model.is_gradient_accumulation_boundary():
            self.model.step()  # counts the passes

    def step(self) -> float:
        """See ``Part``. The schedule moves on all the same where it is not finite."""
        self.model.step()
        self.scheduler.step()
        return float(self.model.get_global_grad_norm())

    def save(self, folder: Path, name: str) -> None:
        """What DeepSpeed writes, in parts; and those of the policy beside it in one piece, from which ``snapshots`` are
        made."""
        if name == "policy":
            save_whole(self.weights, folder / f"{name}.safetensors")
        self.model.save_checkpoint(
            str(folder / f"{name}.deepspeed"), tag=TAG, save_latest=False, exclude_frozen_parameters=True
        )

    def load(self, folder: Path, name: str) -> None:
        """Put back what ``save`` wrote."""
        saved = folder / f"{name}.deepspeed"
        hint = "go on with as many processes as before, or remove the folder of these checkpoints"
        try:
            found, _ = self.model.load_checkpoint(str(saved), tag=TAG, load_module_strict=False)
        except Exception as error:  # DeepSpeed's own, of several kinds
            problem = f"DeepSpeed cannot go on from its checkpoint: {error!r}"
            raise CAIError(problem, where=str(saved), hint=hint) from error
        if found is None:
            raise CAIError("DeepSpeed finds no checkpoint where one was written", where=str(saved), hint=hint)
