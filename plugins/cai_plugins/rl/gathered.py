"""A policy whose weights FSDP2, or DeepSpeed's stage 3, shares out among the processes, and a whole copy of it in each.

The copy samples, and reads what needs no gradient: token by token from shared weights would fetch all of them hundreds
of times per batch of samples. What is shared out are the weights that learn, their gradients and the optimizer's state.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from cai_core.errors import UserError
from cai_plugins._torch.loading import load_causal
from cai_plugins._torch.ranks import full, shards


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


def check_whole() -> None:
    """Raises ``UserError`` where the launch parts weights as FSDP's first version does."""
    if shards() == "FSDP" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "the policy is sampled from with all of its weights in each process, and FSDP's first version does not put "
            "them together one by one",
            where="launch.config",
            hint="set `fsdp_version: 2` under fsdp_config",
        )
