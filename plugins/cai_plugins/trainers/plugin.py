"""Trainers: ``sft``, supervised fine-tuning on conversations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from cai_core.hookspecs import hookimpl
from cai_core.types.component import EXECUTION, Component
from cai_core.types.context import StageContext
from cai_core.types.trainer import Trainer
from cai_plugins._torch.options import TrainingOptions


class SFTOptions(TrainingOptions):
    """Supervised fine-tuning. One pass at a constant rate, as in section 3.2 of the paper."""

    epochs: int = Field(1, ge=1, description="passes over the examples (the paper: 1)")
    # Our choice for adapters; the paper trains all weights at half the pretraining rate, which is about 1e-5.
    learning_rate: float = Field(
        2e-4,
        ge=0,
        description="AdamW's learning rate; for adapters (the paper, all weights: half the pretraining rate)",
    )
    # Our choice: small enough that tens of examples give several steps; the paper has 1024 for 700,000 examples.
    batch_size: int = Field(8, ge=1, description="examples per optimizer step")
    max_length: int = Field(
        1024, ge=16, description="tokens per example; longer ones lose their earliest exchanges, or are left out"
    )
    mixture: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="source -> weight, such as {revision: 3, helpful: 1}: as many examples as there are in these "
        "proportions, chosen by hash; null takes all (the paper: about 2.7 revisions to one helpful answer)",
    )
    shuffle: bool = Field(True, description="shuffle the examples from the seed; false trains in the order given")
    packing: bool = Field(False, description="put several examples into one sequence, each seeing only itself")
    save_steps: int = Field(
        200, ge=1, description="optimizer steps between checkpoints", json_schema_extra=EXECUTION
    )


def make_sft(options: SFTOptions, context: StageContext) -> Trainer:
    """``sft``; see ``sft.py``."""
    from cai_plugins.trainers.sft import SFT

    return SFT(options, context)


@hookimpl
def cai_register_trainers() -> Iterable[Component[Trainer]]:
    """The trainers that come with cai-core."""
    summary = "supervised fine-tuning (TRL): full or LoRA, resumes exactly"
    yield Component("sft", SFTOptions, make_sft, summary, distributed=True)
