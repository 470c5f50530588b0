"""What every training here does around the Trainer: progress, a stop on NaN, sealed checkpoints, curves, silence."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import PrinterCallback, TrainerCallback

from cai_core.errors import CAIError, UserError
from cai_core.types.context import Progress, StageContext
from cai_plugins._torch.checkpoints import keep_last, last_whole, seal
from cai_plugins._torch.options import TrainingOptions
from cai_plugins._torch.ranks import check_sharded, connect, shards, share, wait, world
from cai_plugins._torch.seeding import seed32

KEEP = 2
"""Checkpoints kept. Our choice: the last may turn out damaged, so one before it; each has the optimizer's state."""


class Keeper(Protocol):
    """Knows of checkpoints that are not to be removed."""

    @property
    def spared(self) -> Sequence[int]:
        """Their steps."""
        ...


class StageCallback(TrainerCallback):
    """Reports progress, stops on a loss or gradient that is not finite before anything is saved, and seals
    checkpoints, of which the last ``KEEP`` stay and those of the steps ``keeper.spared``. Of several processes the
    first one alone writes."""

    def __init__(
        self, progress: Progress, folder: Path, note: str, accelerator: Any, keeper: Keeper | None = None
    ) -> None:
        self.accelerator = accelerator
        self.progress = progress
        self.folder = folder
        self.note = note
        self.keeper = keeper

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Progress after each optimizer step."""
        self.progress.update(state.global_step, state.max_steps, self.note)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Stop where the launch is not what was asked for."""
        check_sharded(self.accelerator, model)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kw: Any) -> None:
        """Runs before a checkpoint of the same step is written."""
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(value):
                raise CAIError(
                    f"training stopped at step {state.global_step}: {name} is {value}",
                    hint="lower learning_rate; nothing of this step was saved",
                )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint that Trainer has written, when every process has written its part."""
        wait()
        if not state.is_world_process_zero:
            return
        seal(self.folder / f"checkpoint-{state.global_step}")
        keep_last(self.folder, KEEP, self.keeper.spared if self.keeper else ())


def checkpoints(context: StageContext, name: str) -> Path:
    """The folder for those of the training ``name``. FSDP and DeepSpeed write other files than plain training does,
    which would go on from their weights with an optimizer that has forgotten everything: they are kept apart."""
    return context.workdir / (f"{name}-{shards().lower()}" if shards() else name)


class Unobserved:
    """Put before a TRL trainer: no telemetry and no model cards in checkpoints."""

    def _send_telemetry(self) -> None:
        return None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a checkpoint is not for publishing."""


def micro_batch(options: TrainingOptions, batch: int, where: str, of: str) -> int:
    """Items in memory of a process at a time. Raises ``UserError`` unless it divides a process's part of ``batch``,
    which ``of`` names, and the number of processes divides that."""
    if world() > 1:
        batch = share(batch, where, of)
        of = f"a process's part of it, {batch}, where {world()} processes share {of}"
    micro = options.micro_batch or batch
    if batch % micro:
        raise UserError(
            f"micro_batch {micro} does not divide {of}",
            where=f"{where}.micro_batch",
            hint="choose a divisor of it",
        )
    return micro


def arguments(
    context: StageContext, folder: Path, options: TrainingOptions, *, rate: float, batch: int, micro: int, save: int
) -> dict[str, Any]:
    """The part of ``TrainingArguments`` that all trainings share; on a GPU they compute in bfloat16.

    rate: learning rate. batch: items per optimizer step of all processes, ``micro`` at a time in each. save: steps
    between checkpoints.
    """
    connect(context.device)
    gpu = context.device != "cpu"
    return {
        "learning_rate": rate,
        "lr_scheduler_type": options.schedule,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // (micro * world()),
        "gradient_checkpointing": options.gradient_checkpointing,
        "output_dir": str(folder),
        "seed": seed32(context.seed, "train"),
        "data_seed": seed32(context.seed, "data"),
        "use_cpu": not gpu,
        "bf16": gpu,
        "optim": "adamw_torch",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would replace a NaN by the mean of the losses so far
        "save_strategy": "steps",
        "save_steps": save,
        "save_total_limit": None,  # Trainer removes the old checkpoint before the new one is known to be whole
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
        "ddp_find_unused_parameters": False,  # every weight that is trained is used in every pass
    }


def run(
    trainer: Any, context: StageContext, folder: Path, note: str, keeper: Keeper | None = None
) -> list[dict[str, Any]]:
    """Train, from the last whole checkpoint in ``folder`` if there is one; return the log, one entry per step, of
    all steps, those before a restart included. keeper: see ``StageCallback``."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StageCallback(context.progress, folder, note, trainer.accelerator, keeper))
    start = last_whole(folder)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    return [entry for entry in trainer.state.log_history if "train_runtime" not in entry]


def curve(log: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, float]]:
    """``step`` and the finite numbers of a log; ``names``: name in the log -> name in the curve."""
    rows = []
    for entry in log:
        values = {new: entry.get(old) for old, new in names.items()}
        row = {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}
        if row:
            rows.append({"step": float(entry["step"]), **row})
    return rows


def quiet() -> None:
    """No progress bars, telemetry or chatter from libraries on the way; errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    for name in ("trl", "peft", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|peft|accelerate)\.")
