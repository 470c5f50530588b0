"""Low-rank adapters on, merged and gone again: what is saved is a plain Hugging Face folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel

from cai_core.errors import CAIError
from cai_plugins._torch.options import LoraOptions


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


def save_merged(model: Any, tokenizer: Any, out: Path) -> Any:
    """Write a complete folder (safetensors, tokenizer, chat template) in the weights' own dtype; return the plain
    model, in evaluation mode. With adapters at zero the weights are those that were loaded, bit for bit.

    Raises ``CAIError`` and writes nothing when a weight is not finite.
    """
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
