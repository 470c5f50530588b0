"""RL algorithms: policy + prompts + reward -> policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cai_core.types.prompts import Prompt
from cai_core.types.reward import RewardModel
from cai_core.types.trainer import TrainResult


class RLAlgorithm(Protocol):
    """Improves a policy against a reward. The reference model is the policy as given.

    ``curve`` of the result holds one row per step with at least ``step`` and ``reward`` (mean over that step's
    samples), and ``kl`` (to the reference, nats per sequence) where the algorithm knows it.
    """

    def train(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel, out: Path) -> TrainResult:
        """Train from the model folder ``policy`` and write a complete model folder to the new folder ``out``.

        Checkpoints go to ``context.workdir``. With learning rate 0 the policy is unchanged.
        """
        ...
