"""Low-rank adapters on, merged and gone again: what is saved is a plain Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from cai_core.errors import CAIError
from cai_plugins._torch.options import LoraOptions
from cai_plugins._torch.ranks import is_sharded, rank


def lora_config(
    options: LoraOptions | None, task: Literal["CAUSAL_LM", "SEQ_CLS"], modules: Sequence[str] | None = None
) -> LoraConfig | None:
    """Adapters on every linear layer except the output head. For SEQ_CLS the score head is trained whole.
    modules: full names of the linear layers that get them, if not all.

    No dropout: it would put random numbers into the loss for runs that see each row once.
    """
    if options is None:
        return None
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        target_modules="all-linear" if modules is None else list(modules),
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def trained(trainer: Any, again: Callable[[], Any]) -> Any:
    """A ``Trainer``'s model with all its weights. Where each process holds a part of them, the first gets a new model
    from ``again``, without adapters, with the weights of all; the others get what they have."""
    if not is_sharded(trainer.model_wrapped):
        return trainer.model
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if rank():
        return trainer.model
    model = again()
    given = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if isinstance(given, PeftModel):
        model = get_peft_model(model, given.peft_config["default"])
    model.load_state_dict(weights)
    return model


def save_merged(model: Any, tokenizer: Any, out: Path) -> Any:
    """Write a complete folder (safetensors, tokenizer, chat template) in the weights' own dtype; return the plain
    model, in evaluation mode. With adapters at zero the weights are those that were loaded, bit for bit.

    Of several processes the first one writes, and the others get back what they gave. Raises ``CAIError`` and writes
    nothing when a weight is not finite.
    """
    if rank():
        return model
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    model.eval()
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise CAIError(f"training diverged: {name} is not finite", hint="lower learning_rate; nothing was saved")
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model
