"""What the tests of trainers, reward models and RL share: a stage context and a way to compare model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cai_core.testing import Interrupted, TestContext
from cai_core.types.records import Conversation, Message


def Context(workdir: Path, *, seed: int = 11, stop_at: int | None = None, **parts: Any) -> TestContext:
    """``parts``: role or kind -> backend or component."""
    return TestContext(workdir, seed=seed, stop_at=stop_at, backends=parts, components=parts)


__all__ = ["Context", "Interrupted", "distance", "same", "turns", "weights"]


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
