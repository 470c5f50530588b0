"""Options that several training components share. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cai_core.types.component import EXECUTION


class LoraOptions(BaseModel):
    """Low-rank adapters on all linear layers, merged into the weights at the end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Our choice: rank 16 with alpha twice the rank is PEFT's common setting; the paper trains all weights.
    rank: int = Field(16, ge=1, description="rank of the adapters")
    alpha: float = Field(32.0, gt=0, description="the adapters' output is scaled by alpha / rank")


class TrainingOptions(BaseModel):
    """How weights are trained, whatever the loss. A batch is what one optimizer step sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="how the rate changes; linear and cosine fall to zero (the paper: constant)"
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="items of a batch in memory at a time, gradients accumulate over them; null is the whole batch",
        json_schema_extra=EXECUTION,
    )
    lora: LoraOptions | None = Field(
        LoraOptions(), description="adapters (in RL the reference is the model without them); null trains all weights"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations: less memory, more time", json_schema_extra=EXECUTION
    )
