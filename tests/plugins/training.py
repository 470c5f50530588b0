"""What the tests of trainers, reward models and RL share: a stage context and a way to compare model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cai_core.types.records import Conversation, Message


class Interrupted(Exception):
    pass


class Progress:
    """Records; raises ``Interrupted`` when ``stop_at`` units are done."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.seen: list[tuple[int, int]] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        self.seen.append((done, total))
        if done == self.stop_at:
            raise Interrupted


class Context:
    """A ``StageContext`` for one component."""

    def __init__(self, workdir: Path, *, seed: int = 11, stop_at: int | None = None, **parts: Any) -> None:
        self.seed = seed
        self.workdir = workdir
        self.device = "cpu"
        self.constitution: Any = None
        self.progress = Progress(stop_at)
        self.parts = parts
        workdir.mkdir(parents=True, exist_ok=True)

    def backend(self, role: str) -> Any:
        return self.parts[role]

    def component(self, kind: str) -> Any:
        return self.parts[kind]


def turns(*texts: str) -> Conversation:
    """User and assistant in turn, the user first."""
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    """Whether two folders hold the same weights, bit for bit."""
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def distance(a: Path, b: Path) -> float:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)
