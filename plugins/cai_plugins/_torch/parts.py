"""Weights that learn together, with their optimizer and its schedule, in one process or several."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import get_scheduler

from cai_plugins._torch.checkpoints import seal
from cai_plugins._torch.options import TrainingOptions
from cai_plugins._torch.ranks import full, like, mean_of_gradients, rank, wait, world


class Part:
    """The weights of ``model`` that learn, by AdamW; ``model`` may be shared out by FSDP2. Every process calls every
    method, at the same time.

    rate: learning rate. updates: optimizer steps that the schedule is for.
    """

    def __init__(self, model: Any, options: TrainingOptions, rate: float, updates: int) -> None:
        self.model = model
        self.weights: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.limit = options.max_grad_norm
        self.optimizer = torch.optim.AdamW(list(self.weights.values()), lr=rate, weight_decay=options.weight_decay)
        self.scheduler = get_scheduler(options.schedule, self.optimizer, 0, updates)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def backward(self, loss: Tensor) -> None:
        """Gradients of ``loss`` on top of those there are. What is learnt from is the sum over the processes."""
        (loss * world()).backward()

    def step(self) -> float:
        """An optimizer step; the norm of the gradient before it was scaled down. Nothing is learnt where that is not
        finite."""
        parameters = list(self.weights.values())
        mean_of_gradients(parameters)
        norm = float(full(torch.nn.utils.clip_grad_norm_(parameters, self.limit)))
        if math.isfinite(norm):
            self.optimizer.step()
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def save(self, folder: Path, name: str) -> None:
        """The weights and the optimizer's moments as ``NAME....safetensors``, which the first process writes: the same
        files whether or not FSDP2 shares the tensors out."""
        save_whole(self.weights, folder / f"{name}.safetensors")
        moments = {
            f"{kind}.{key}": value
            for key, weight in self.weights.items()
            for kind, value in self.optimizer.state[weight].items()
        }
        save_whole(moments, folder / f"{name}.optimizer.safetensors")

    def load(self, folder: Path, name: str) -> None:
        """Put back what ``save`` wrote."""
        found = load_file(folder / f"{name}.safetensors")
        with torch.no_grad():
            for key, weight in self.weights.items():
                weight.copy_(like(found[key], weight))
        self.optimizer.state.clear()
        for named, value in load_file(folder / f"{name}.optimizer.safetensors").items():
            kind, _, key = named.partition(".")
            of = self.weights[key]
            self.optimizer.state[of][kind] = like(value.to(of.device), of) if value.shape == of.shape else value


def save_training(folder: Path, parts: Mapping[str, Part], kept: Mapping[str, Any]) -> None:
    """A new, sealed folder. ``kept``: JSON without NaN. Every process calls it."""
    if not rank():
        folder.mkdir(parents=True)
    wait()
    for name, part in parts.items():
        part.save(folder, name)
    wait()
    if not rank():
        schedules = {name: part.scheduler.state_dict() for name, part in parts.items()}
        text = json.dumps({**kept, "schedules": schedules}, allow_nan=False)
        (folder / "state.json").write_text(text, encoding="utf-8")
        seal(folder)
    wait()  # one that finds no seal would take it for torn


def load_training(folder: Path, parts: Mapping[str, Part]) -> dict[str, Any]:
    """Puts back what ``save_training`` wrote and returns ``kept``."""
    kept: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    schedules = kept.pop("schedules")
    for name, part in parts.items():
        part.load(folder, name)
        part.scheduler.load_state_dict(schedules[name])
        for group, rate in zip(part.optimizer.param_groups, part.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
    return kept


def save_whole(tensors: Mapping[str, Tensor], path: Path) -> None:
    """One after the other is put together, in the order that all processes have them in; the first one writes."""
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        everything = full(value).detach()
        if not rank():
            found[key] = everything.cpu().contiguous()
    if not rank():
        save_file(found, path)
