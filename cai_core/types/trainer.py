"""Trainers: supervised fine-tuning on conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cai_core.types.records import Conversation


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that ends on an assistant turn; ``source`` names the mixture part."""

    id: str
    messages: Conversation
    source: str = ""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training stage reports. ``metrics``: finite numbers. ``curve``: one mapping per logged step, with
    ``step`` and finite numbers (``loss``, ``reward``, ``kl``, ...)."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()
    notes: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


class Trainer(Protocol):
    """Trains a causal model. Checkpoints go to ``context.workdir``; a restart resumes from the last whole one."""

    def train(self, model: Path, examples: Sequence[Example], out: Path) -> TrainResult:
        """Train ``model`` on ``examples`` (in the given order unless options say otherwise) and write a complete
        Hugging Face folder (weights as safetensors, tokenizer, chat template) to the new folder ``out``.

        Raises ``UserError`` on data or options that cannot be trained on, ``CAIError`` on a NaN loss.
        """
        ...
