"""The contracts of a labeler and of an RL algorithm, from cai-core's own kit."""

from typing import ClassVar

from cai_core.testing import LabelerConformance, RLAlgorithmConformance

SFT = {"lora": None, "learning_rate": 1e-2, "batch_size": 4, "save_steps": 1}


class TestOrdinal(LabelerConformance):
    component_id = "cai-extras/ordinal"
    letters = ("first", "second")


class TestAboveMean(RLAlgorithmConformance):
    component_id = "cai-extras/above_mean"
    options: ClassVar = {"samples": 24, "max_new_tokens": 8}
    needs: ClassVar = {"trainer": ("cai-core/sft", SFT)}
    short: ClassVar = {"samples": 4}
    frozen: ClassVar = {}
    frozen_needs: ClassVar = {"trainer": {"learning_rate": 0}}
    checkpointed: ClassVar = {}
    stop_at = 8 * 4 + 2  # all samples, and two steps of the trainer
