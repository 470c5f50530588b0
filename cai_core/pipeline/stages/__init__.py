"""The stages, one plain function each: ``stage(job, folder) -> info``.

A stage reads its inputs' artifacts, does its work through the components of the job, and writes files into
``folder``. ``info`` (JSON) goes into the manifest: counts and what was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cai_core.pipeline.job import Job
from cai_core.pipeline.prompts import run_prompts
from cai_core.pipeline.stages.answers import run_answers
from cai_core.pipeline.stages.evaluate import run_evaluate
from cai_core.pipeline.stages.label import run_label
from cai_core.pipeline.stages.pairs import run_pairs
from cai_core.pipeline.stages.report import run_report
from cai_core.pipeline.stages.revise import run_revise
from cai_core.pipeline.stages.train import run_reward, run_rl, run_sft

STAGES: dict[str, Callable[[Job, Path], dict[str, Any]]] = {
    "prompts": run_prompts,
    "revise": run_revise,
    "sft": run_sft,
    "audit": run_evaluate,
    "pairs": run_pairs,
    "label": run_label,
    "reward": run_reward,
    "rl": run_rl,
    "answers": run_answers,
    "evaluate": run_evaluate,
    "report": run_report,
}
