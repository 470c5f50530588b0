"""Options that several training components share. Light: no torch here."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LoraOptions(BaseModel):
    """Low-rank adapters on all linear layers, merged into the weights at the end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Our choice: rank 16 with alpha twice the rank is PEFT's common setting; the paper trains all weights.
    rank: int = Field(16, ge=1, description="rank of the adapters")
    alpha: float = Field(32.0, gt=0, description="the adapters' output is scaled by alpha / rank")
