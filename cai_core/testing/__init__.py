"""The conformance kit for plugin authors: the contract of every kind as tests, and what such tests need.

Subclass the class of your component's kind in a test file and run pytest::

    from cai_core.testing import LabelerConformance

    class TestShorter(LabelerConformance):
        component_id = "my-package/shorter"

Needs pytest (``pip install 'cai-core[testing]'``); models are tiny random ones that are made on the spot.
"""

from cai_core.testing.backend import BackendConformance
from cai_core.testing.base import Conformance
from cai_core.testing.context import CONSTITUTION, Interrupted, TestContext
from cai_core.testing.critique import CritiqueTemplateConformance
from cai_core.testing.evaluator import EvaluatorConformance
from cai_core.testing.judges import ScriptedJudge
from cai_core.testing.labeler import LabelerConformance
from cai_core.testing.principles import PrincipleSamplerConformance
from cai_core.testing.prompts import PromptSourceConformance
from cai_core.testing.reporter import ReporterConformance
from cai_core.testing.reward import RewardModelConformance
from cai_core.testing.rl import RLAlgorithmConformance
from cai_core.testing.trainer import TrainerConformance
from cai_core.testing.verdicts import VERDICTS

CONFORMANCE: dict[str, type[Conformance]] = {
    cls.kind: cls
    for cls in (
        BackendConformance,
        PromptSourceConformance,
        PrincipleSamplerConformance,
        CritiqueTemplateConformance,
        LabelerConformance,
        TrainerConformance,
        RewardModelConformance,
        RLAlgorithmConformance,
        EvaluatorConformance,
        ReporterConformance,
    )
}
"""Kind -> its conformance class."""

__all__ = [
    "CONFORMANCE",
    "CONSTITUTION",
    "VERDICTS",
    "BackendConformance",
    "Conformance",
    "CritiqueTemplateConformance",
    "EvaluatorConformance",
    "Interrupted",
    "LabelerConformance",
    "PrincipleSamplerConformance",
    "PromptSourceConformance",
    "RLAlgorithmConformance",
    "ReporterConformance",
    "RewardModelConformance",
    "ScriptedJudge",
    "TestContext",
    "TrainerConformance",
]
