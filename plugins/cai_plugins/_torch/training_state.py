"""A training as files: what is trained, the optimizer's moments, the schedule, and whatever else its owner keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cai_plugins._torch.checkpoints import seal
from cai_plugins._torch.ranks import full, like, rank

Parts = Mapping[str, Mapping[str, Tensor]]
"""Name of a part -> name of a parameter -> its values, which training changes."""


def save_training(folder: Path, parts: Parts, optimizer: Any, scheduler: Any, kept: Mapping[str, Any]) -> None:
    """A new, sealed folder. ``kept``: JSON without NaN. Every process calls it and the first one writes: the same files
    whether or not FSDP2 shares the tensors out."""
    if not rank():
        folder.mkdir(parents=True)
    for name, part in parts.items():
        _save({key: value.detach() for key, value in part.items()}, folder / f"{name}.safetensors")
    moments = {
        f"{number}.{name}": value
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    _save(moments, folder / "optimizer.safetensors")
    if rank():
        return
    text = json.dumps({**kept, "schedule": scheduler.state_dict()}, allow_nan=False)
    (folder / "state.json").write_text(text, encoding="utf-8")
    seal(folder)


def load_training(folder: Path, parts: Parts, optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """Puts back what ``save_training`` wrote and returns ``kept``."""
    with torch.no_grad():
        for name, part in parts.items():
            found = load_file(folder / f"{name}.safetensors")
            for key, value in part.items():
                value.copy_(like(found[key], value))
    learnt = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        number, _, name = key.partition(".")
        of = learnt[int(number)]
        moments.setdefault(int(number), {})[name] = like(value, of) if value.shape == of.shape else value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    kept: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    scheduler.load_state_dict(kept.pop("schedule"))
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    return kept


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """One after the other is put together, in the order that all processes have them in."""
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        everything = full(value)
        if not rank():
            found[key] = everything.cpu().contiguous()
    if not rank():
        save_file(found, path)
