"""Policies that are kept from the way, to be evaluated beside the result: option ``snapshots``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback

from cai_core.errors import UserError
from cai_core.types.rl import snapshot_folder
from cai_plugins._torch.loading import load_causal, train_dtype
from cai_plugins._torch.lora import lora_config, save_merged
from cai_plugins._torch.options import LoraOptions
from cai_plugins._torch.ranks import rank
from cai_plugins.rl.astray import Guard
from cai_plugins.rl.looking import in_parts
from cai_plugins.rl.plugin import RLOptions
from cai_plugins.rl.validation import Validation, checkpoint

OWN = "policy.safetensors"
"""Where ``save_training`` keeps the part ``policy``."""


def check_snapshots(steps: Sequence[int], last: int, window: int = 1) -> None:
    """Raises ``UserError`` unless checkpoints fall on ``steps``: every ``window`` up to ``last``."""
    for step in steps:
        if step > last:
            raise UserError(
                f"snapshot {step} is beyond the last step, {last}",
                where="rl.snapshots",
                hint="give steps that training reaches",
            )
        if step % window:
            raise UserError(
                f"snapshot {step} is in the middle of a batch of samples, of which {window} updates are made",
                where="rl.snapshots",
                hint=f"give multiples of updates_per_batch, {window}",
            )


def spared(steps: Sequence[int], validation: Validation | None) -> list[int]:
    """Steps whose checkpoints are not to be removed."""
    return [*steps, *(validation.spared if validation is not None else ())]


class Snapshots(TrainerCallback):
    """Has checkpoints written at ``steps``, and is the ``Keeper`` that spares them. Put it before ``StageCallback``."""

    def __init__(self, steps: Sequence[int], validation: Validation | None) -> None:
        self.steps = steps
        self.validation = validation

    @property
    def spared(self) -> list[int]:
        """See ``Keeper``."""
        return spared(self.steps, self.validation)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint; not of a training that ends here by itself, which would go on from it."""
        if state.global_step in self.steps and not control.should_training_stop:
            control.should_save = True


def last_trained(
    trainer: Any, steps: Sequence[int], folder: Path, guard: Guard, good: int | None
) -> tuple[int, Path | None]:
    """The last step of a training by transformers' ``Trainer`` whose policy may be kept. Where it has gone astray:
    ``good``, or, where a look has chosen, the step before trouble showed.

    Where patience has ended it at one of ``steps`` there is no checkpoint, since a restart would train on from it: the
    policy is written to the folder that is returned, in the same form. So call it before the result is made, which
    may take its place, and in every process.
    """
    if guard.found:
        return (guard.step - 1 if good is None else good), None
    step = int(trainer.state.global_step)
    if step == trainer.state.max_steps or step not in steps:
        return step, None
    ended = folder / f"ended-{step}"
    trainer.save_model(str(ended))
    return step, ended


def write_snapshots(
    options: RLOptions,
    trained: int,
    folder: Path,
    policy: Path,
    device: str,
    tokenizer: Any,
    out: Path,
    ended: Path | None = None,
) -> list[str]:
    """Write the policies of ``options.snapshots`` beside ``out``, which is there already, from the checkpoints in
    ``folder`` of a training of ``policy``. It ended after step ``trained``, of which ``ended`` is, where given; for
    what it did not reach stands its result, and the notes that are returned say so.

    Of several processes the first writes. Raises ``CAIError`` where a checkpoint is gone or in parts.
    """
    notes = []
    for step in options.snapshots if not rank() else ():
        target = out.parent / snapshot_folder(step)
        if step > trained:
            shutil.copytree(out, target)
            notes.append(f"training ended after step {trained}: its result stands for snapshot {step}")
        else:
            saved = ended if ended is not None and step == trained else checkpoint(folder, step)
            save_merged(_policy(saved, policy, options.lora, device), tokenizer, target)
    return notes


def _policy(saved: Path, policy: Path, lora: LoraOptions | None, device: str) -> Any:
    """The policy of a checkpoint, on the CPU, in the weights' type of the training."""
    own, adapters = saved / OWN, saved / "adapter_model.safetensors"
    if lora is None and not own.is_file():
        if not any(saved.glob("model*.safetensors")):
            raise in_parts(saved)
        model = load_causal(saved, "cpu", all_weights=True)
    else:
        model = load_causal(policy, "cpu", all_weights=lora is None)
    model = model.to(train_dtype(device, lora is None))
    if lora is not None:
        model = get_peft_model(model, lora_config(lora, "CAUSAL_LM"))
    if own.is_file():
        found = model.load_state_dict(load_file(own), strict=False)
        assert not found.unexpected_keys
    elif lora is not None:
        if not adapters.is_file():
            raise in_parts(saved)
        set_peft_model_state_dict(model, load_file(adapters))
    return model
