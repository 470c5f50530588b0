"""RL algorithms: policy + prompts + reward (or labels) -> policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cai_core.types.prompts import Prompt
from cai_core.types.reward import RewardModel
from cai_core.types.trainer import TrainResult


def snapshot_folder(step: int) -> str:
    """Where in an artifact the policy after ``step`` lies; 0 is the result of the training."""
    return f"snapshots/{step}" if step else "model"


class RLAlgorithm(Protocol):
    """Improves a policy against a reward, or on the run's labels. The reference model is the policy as given.

    What it learns from is declared (``Component.learns_from``): prompts and a reward unless it says otherwise. Labels
    are in ``context.preferences()``; prompts that were not declared are empty, and a reward refuses to score.
    Order: ``curve`` has one row per step, rising, with at least ``step``, and ``reward`` where it learns from one.
    Shapes and units: ``reward`` is the mean over that step's samples; ``kl``, where the algorithm knows it, is to the
    reference, in nats per sequence.
    Ownership: the folder ``policy`` is read only; ``out`` is new and the algorithm's; checkpoints go to
    ``context.workdir``. The reward model is fitted and belongs to the caller; ``context.backend("policy")`` is the
    policy as given.
    Snapshots: an algorithm with the option ``snapshots`` (steps, rising) also writes the policy after each of them as a
    complete model folder, to ``out.parent / snapshot_folder(step)``, whichever policy is the result; where training
    ended before such a step, its result. They can be evaluated as ``rl@STEP``.
    Errors: ``UserError`` when prompts, labels or options do not fit (none of them given, a label that is no
    probability), ``CAIError`` when a reward or a loss is not finite. Nothing is learnt from such a reward.
    Determinism: the same arguments, options and seed give the same weights on the same device and number of threads,
    also when a crash and a restart lie between; learning rate 0 gives the weights that went in, bit for bit.
    """

    def train(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel, out: Path) -> TrainResult:
        """Train from the model folder ``policy`` and write a complete model folder to the new folder ``out``.

        Checkpoints go to ``context.workdir``. With learning rate 0 the policy is unchanged.
        """
        ...
