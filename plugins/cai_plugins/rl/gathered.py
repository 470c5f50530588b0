"""A policy whose weights FSDP2 shares out among the processes, and a whole copy of it in each of them.

The copy samples, and reads what needs no gradient: token by token from shared weights would fetch all of them hundreds
of times per batch of samples. What is shared out are the weights that learn, their gradients and the optimizer's state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from peft import PeftModel, get_peft_model

from cai_core.errors import UserError
from cai_plugins._torch.loading import load_causal
from cai_plugins._torch.ranks import full, is_sharded


def copied(model: Any, policy: Path, device: str) -> Any:
    """A copy of ``model``, which is that of ``policy``, or that with new adapters; it does not learn. Those that the
    adapters begin with are not copied, see ``refresh``. It is made from the files, since TRL changes what ``model``
    does."""
    adapters = isinstance(model, PeftModel)
    made = load_causal(policy, device, all_weights=not adapters)
    if adapters:
        with torch.random.fork_rng(devices=[]):  # what is drawn next must not depend on the launch
            made = get_peft_model(made, model.peft_config["default"])
    return made.requires_grad_(False).eval().to(device)


@torch.no_grad()
def refresh(copy: Any, model: Any) -> None:
    """Give ``copy`` the weights of ``model`` that learn, one by one. All processes call it at the same time."""
    for own, value in zip(copy.parameters(), model.parameters(), strict=True):
        if value.requires_grad:
            own.copy_(full(value))


def check_whole(model: Any) -> None:
    """Raises ``UserError`` where a process has a part of the weights alone, in another way than FSDP2's."""
    if is_sharded(model) and not any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise UserError(
            "the policy is sampled from with all of its weights in each process, and the launch shares them out in a "
            "way that they cannot be put together in",
            where="launch.config",
            hint="use FSDP with `fsdp_version: 2`, or launch without FSDP and DeepSpeed",
        )


def share_out(accelerator: Accelerator, model: Any) -> Any:
    """``model`` with its weights shared out as the launch's configuration says. Only a call of it itself, not of a
    model inside of it, fetches them."""
    plugin = accelerator.state.fsdp_plugin
    given = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    model = fsdp2_prepare_model(accelerator, model)
    # It has put in which layers this model is cut into, and the next one may have others.
    plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = given
    return model
