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
    """Trains a causal model.

    Order: examples are seen in the given order unless options say otherwise; ``curve`` rises in ``step``.
    Shapes and units: ``loss`` is the mean negative log-probability per token (nats); only the last answer is learnt.
    Ownership: the folder ``model`` is read only; ``out`` is new and the trainer's; checkpoints go to
    ``context.workdir``, which survives a crash and is removed when the stage is done.
    Errors: ``UserError`` on data or options that cannot be trained on, ``CAIError`` on a loss that is not finite.
    Determinism: the same model, examples, options and seed give the same weights on the same device and number of
    threads, also when a crash and a restart lie between; learning rate 0 gives the weights that went in, bit for bit.
    """

    def train(self, model: Path, examples: Sequence[Example], out: Path) -> TrainResult:
        """Train ``model`` on ``examples`` (in the given order unless options say otherwise) and write a complete
        Hugging Face folder (weights as safetensors, tokenizer, chat template) to the new folder ``out``.
        """
        ...
