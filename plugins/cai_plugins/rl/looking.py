"""``Validation`` in a training by transformers' ``Trainer``, with TRL's trainers on top of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback

from cai_core.errors import CAIError
from cai_plugins._torch.loading import load_causal
from cai_plugins._torch.lora import trained
from cai_plugins._torch.ranks import is_sharded, rank
from cai_plugins.rl.validation import Validation, checkpoint

FILE = "validation.json"


class Looks(TrainerCallback):
    """Looks at the policy, has a checkpoint written where it is the best so far, and stops when patience runs out.

    ``window``: optimizer steps on one batch of samples; checkpoints, and so looks, fall between batches. Put it before
    ``StageCallback``, which seals checkpoints.
    """

    def __init__(self, validation: Validation, folder: Path, window: int = 1) -> None:
        self.validation = validation
        self.folder = folder
        every = -(-validation.options.every // window) * window
        validation.options = validation.options.model_copy(update={"every": every})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The policy as given; or what was seen before a restart."""
        if state.global_step:
            text = (self.folder / f"checkpoint-{state.global_step}" / FILE).read_text(encoding="utf-8")
            self.validation.rows = json.loads(text)
        else:
            self.validation.look(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, where it is time to."""
        validation, step = self.validation, state.global_step
        if not validation.due(step, state.max_steps):
            return
        validation.look(step)
        if validation.best == step:
            control.should_save = True
        elif validation.exhausted and step < state.max_steps:
            # No checkpoint here: a restart from one would train on.
            control.should_training_stop, control.should_save = True, False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was seen so far, as a part of the checkpoint."""
        if not state.is_world_process_zero:
            return
        path = self.folder / f"checkpoint-{state.global_step}" / FILE
        path.write_text(json.dumps(self.validation.rows, allow_nan=False), encoding="utf-8")


def in_parts(folder: Path) -> CAIError:
    """For a checkpoint whose weights are needed in one piece."""
    return CAIError(
        f"{folder.name} is in parts, and a policy is to be made of it",
        where="launch.config",
        hint="set fsdp_state_dict_type: FULL_STATE_DICT and give the same command again",
    )


def chosen(
    trainer: Any, validation: Validation | None, folder: Path, again: Callable[[], Any], good: int | None
) -> Any:
    """The model that is the result: that of the best look; else of step ``good``, where training has gone astray; else
    the last. ``again`` loads the policy as given. Of several processes the first has it, which writes it."""
    best = None if validation is None else validation.best
    step = good if best is None else best
    if step is None or step == trainer.state.global_step:
        return trained(trainer, again)
    if rank():
        return trainer.model
    if step == 0:
        return again()
    found = checkpoint(folder, step)
    if not any(found.glob("*.safetensors")):
        raise in_parts(found)
    given = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if not isinstance(given, PeftModel):
        return load_causal(found, "cpu", all_weights=True)
    model = get_peft_model(again(), given.peft_config["default"]) if is_sharded(given) else given
    set_peft_model_state_dict(model, load_file(found / "adapter_model.safetensors"))
    return model
