"""The contracts of a labeler and of an RL algorithm, from cai-core's own kit."""

from cai_core.testing import LabelerConformance, RLAlgorithmConformance

SFT = {"lora": None, "learning_rate": 1e-2, "batch_size": 4, "save_steps": 1}


class TestOrdinal(LabelerConformance):
    component_id = "cai-extras/ordinal"
    letters = ("first", "second")


class TestAboveMean(RLAlgorithmConformance):
    component_id = "cai-extras/above_mean"
    options = {"samples": 24, "max_new_tokens": 8}  # noqa: RUF012
    needs = {"trainer": ("cai-core/sft", SFT)}  # noqa: RUF012
    short = {"samples": 4}  # noqa: RUF012
    frozen = {}  # noqa: RUF012
    frozen_needs = {"trainer": {"learning_rate": 0}}  # noqa: RUF012
    checkpointed = {}  # noqa: RUF012
    stop_at = 2
