"""Every built-in component keeps the contract of its kind, on tiny real models."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cai_core.plugins import load_plugins
from cai_core.testing import (
    BackendConformance,
    Conformance,
    CritiqueTemplateConformance,
    EvaluatorConformance,
    LabelerConformance,
    PrincipleSamplerConformance,
    PromptSourceConformance,
    ReporterConformance,
    RewardModelConformance,
    RLAlgorithmConformance,
    TrainerConformance,
)
from cai_core.testing.base import local_model
from cai_core.testing.context import TestContext
from cai_core.testing.judges import GOOD
from cai_core.types.backend import Capabilities, Completion, GenerateRequest
from cai_core.types.evaluator import Chain, EvalInput
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message
from servers import FaultServer

SFT = {"lora": None, "learning_rate": 1e-2, "batch_size": 4}


class TestTransformers(BackendConformance):
    component_id = "cai-core/transformers"


class TestEcho(BackendConformance):
    component_id = "cai-core/echo"


class TestOpenAI(BackendConformance):
    component_id = "cai-core/openai"

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with FaultServer() as self.server:
            self.server.fault = lambda number, body: "400" if len(str(body)) > 5000 else ""
            yield

    def make(self, context: TestContext, **changed: Any) -> Any:
        # The kit gives a model folder: its tokenizer renders conversations, which scoring them needs.
        tokenizer = changed.pop("model")
        return super().make(context, tokenizer=tokenizer, model="server:m", base_url=self.server.url, **changed)


class TestBuiltin(PromptSourceConformance):
    component_id = "cai-core/builtin"


class TestJsonl(PromptSourceConformance):
    component_id = "cai-core/jsonl"
    options = {"path": "prompts.jsonl", "heldout_share": 0.3}

    def make(self, context: TestContext, **changed: Any) -> Any:
        rows = [{"prompt": f"How do I bake {n} breads?"} for n in range(9)]
        path = context.workdir / "prompts.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return super().make(context, path=str(path))


class TestHF(PromptSourceConformance):
    component_id = "cai-core/hf"
    options = {"dataset": "rows.csv"}

    def make(self, context: TestContext, **changed: Any) -> Any:
        path = context.workdir / "rows.csv"
        path.write_text("prompt\n" + "\n".join(f"How do I bake {n} breads?" for n in range(9)))
        return super().make(context, dataset=str(path))


class TestHHRLHF(PromptSourceConformance):
    component_id = "cai-core/hh_rlhf"
    options = {"path": "part.jsonl", "turns": "every", "heldout_share": 0.4}

    def make(self, context: TestContext, **changed: Any) -> Any:
        words = ["bread", "soup", "cake", "pie", "rice", "stew", "jam", "tea"]
        rows = [
            {"chosen": f"\n\nHuman: How is {w} made at home?\n\nAssistant: Slowly.\n\nHuman: Why is {w} so good?"}
            for w in words
        ]
        path = context.workdir / "part.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return super().make(context, path=str(path))


class TestGenerate(PromptSourceConformance):
    component_id = "cai-core/generate"
    options = {"red_team": 5, "helpful": 4, "heldout_share": 0.4}

    def make(self, context: TestContext, **changed: Any) -> Any:
        context.backends[""] = Writer()
        return super().make(context, **changed)


class Writer:
    """A model that writes other prompts for other seeds."""

    capabilities = Capabilities()
    context_length = 10_000

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        words = ["bread", "soup", "cake", "pie", "rice", "stew", "jam", "tea", "milk", "corn", "nuts", "figs"]
        for request in requests:
            rng = random.Random(request.seed)
            text = f" How can I make {' and '.join(rng.sample(words, 4))} for a party of {rng.randrange(90)}?"
            yield Completion(request.id, text, "stop")


class TestRelevant(PrincipleSamplerConformance):
    component_id = "cai-core/relevant"


class TestRelevantTwo(PrincipleSamplerConformance):
    component_id = "cai-core/relevant"
    options = {"count": 2, "temperature": 0.01}


class TestUniform(PrincipleSamplerConformance):
    component_id = "cai-core/uniform"


class TestUniformTwo(PrincipleSamplerConformance):
    component_id = "cai-core/uniform"
    options = {"count": 2}


class TestWeighted(PrincipleSamplerConformance):
    component_id = "cai-core/weighted"


class TestRoundRobin(PrincipleSamplerConformance):
    component_id = "cai-core/round_robin"


class TestAll(PrincipleSamplerConformance):
    component_id = "cai-core/all"


class TestChat(CritiqueTemplateConformance):
    component_id = "cai-core/chat"


class TestPaper(CritiqueTemplateConformance):
    component_id = "cai-core/paper"


class TestDirect(CritiqueTemplateConformance):
    component_id = "cai-core/direct"


class TestDirectPaper(CritiqueTemplateConformance):
    component_id = "cai-core/direct"
    options = {"format": "paper"}


class TestLogprobPaper(LabelerConformance):
    component_id = "cai-core/logprob"
    options = {"shots": 0}


class TestLogprobChat(LabelerConformance):
    component_id = "cai-core/logprob"
    options = {"format": "chat", "shots": 0}


class TestCot(LabelerConformance):
    component_id = "cai-core/cot"
    options = {"max_new_tokens": 8}


class TestCotPaper(LabelerConformance):
    component_id = "cai-core/cot"
    options = {"format": "paper", "clamp": None, "samples": 2, "max_new_tokens": 8}


class TestVerdict(LabelerConformance):
    component_id = "cai-core/verdict"


class TestVerdictSamples(LabelerConformance):
    component_id = "cai-core/verdict"
    options = {"samples": 3, "temperature": 1.0}


class TestEnsembleLabeler(LabelerConformance):
    component_id = "cai-core/ensemble"
    options = {
        "members": [
            {"labeler": "logprob", "format": "chat", "shots": 0},
            {"labeler": "verdict", "role": "judge_cot"},
        ],
    }


class TestHuman(LabelerConformance):
    component_id = "cai-core/human"
    options = {"path": "labels.jsonl"}

    def make(self, context: TestContext, **changed: Any) -> Any:
        path = context.workdir / "labels.jsonl"
        rows = [
            {"prompt": c.prompt[0].content, "a": c.response_a, "b": c.response_b, "p_a": float(c.response_a == GOOD)}
            for c in self.comparisons()
        ]
        path.write_text("\n".join(map(json.dumps, rows)))
        return super().make(context, path=str(path))


class TestSFT(TrainerConformance):
    component_id = "cai-core/sft"
    options = SFT


class TestSFTLora(TrainerConformance):
    component_id = "cai-core/sft"
    options = {"learning_rate": 2e-2, "batch_size": 4}


class TestPreference(RewardModelConformance):
    component_id = "cai-core/preference"
    options = {
        "lora": None,
        "learning_rate": 5e-3,
        "batch_size": 4,
        "epochs": 2,
        "helpful": "none",
        "heldout": 0,
    }


class TestRules(RewardModelConformance):
    component_id = "cai-core/rules"
    options = {"length_weight": 1.0, "target_words": 10}
    deviations = {
        "test_scores_rise_with_the_label": "the rules are written down, nothing is learnt",
        "test_asked_before_it_knows_anything_it_says_so": "the rules are known from the start",
    }


class TestJudge(RewardModelConformance):
    component_id = "cai-core/judge"
    options = {"measure": 2}
    deviations = {"test_scores_rise_with_the_label": "the judge is asked, nothing is learnt"}

    @pytest.fixture(autouse=True)
    def _judge(self, cai_tiny_model: Path) -> None:
        self.judge = local_model(cai_tiny_model)

    def make(self, context: TestContext, **changed: Any) -> Any:
        context.backends["judge"] = self.judge
        return super().make(context, **changed)


class TestEnsemble(RewardModelConformance):
    component_id = "cai-core/ensemble"
    options = {
        "members": (
            {"reward_model": "preference", **TestPreference.options},
            {"reward_model": "preference", **TestPreference.options},
        ),
        "combine": "minimum",
        # Both have one scale. Standardised, two models that learnt from labels of 0.5 would be as sure as any.
        "standardise": False,
    }


class TestGRPO(RLAlgorithmConformance):
    component_id = "cai-core/grpo"
    options = {
        "steps": 20,
        "prompts_per_step": 2,
        "samples_per_prompt": 8,
        "max_new_tokens": 8,
        "lora": None,
        "learning_rate": 1e-2,
        "beta": 0.0,
    }


class TestGRPOLora(RLAlgorithmConformance):
    component_id = "cai-core/grpo"
    options = {
        "steps": 20,
        "prompts_per_step": 2,
        "samples_per_prompt": 8,
        "max_new_tokens": 8,
        "learning_rate": 3e-2,
    }


class TestRLOO(RLAlgorithmConformance):
    component_id = "cai-core/rloo"
    options = {
        "steps": 20,
        "prompts_per_step": 2,
        "samples_per_prompt": 8,
        "max_new_tokens": 8,
        "lora": None,
        "learning_rate": 1e-2,
        "normalize_advantages": True,
    }


class TestDPO(RLAlgorithmConformance):
    component_id = "cai-core/dpo"
    options = {"lora": None, "learning_rate": 1e-2, "batch_size": 4, "epochs": 4}
    learns_from = ("label",)
    short = {"epochs": 1}


class TestPPO(RLAlgorithmConformance):
    component_id = "cai-core/ppo"
    options = {
        "steps": 20,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "max_new_tokens": 8,
        "lora": None,
        "learning_rate": 3e-3,
    }


class TestPPOLora(RLAlgorithmConformance):
    component_id = "cai-core/ppo"
    options = {
        "steps": 20,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "max_new_tokens": 8,
        "learning_rate": 3e-2,
        "kl_control": "adaptive",
    }


class TestPPOSeparateCritic(RLAlgorithmConformance):
    component_id = "cai-core/ppo"
    options = {**TestPPO.options, "critic": "separate"}


class TestOnlineDPO(RLAlgorithmConformance):
    component_id = "cai-core/online_dpo"
    options = {
        "steps": 40,
        "prompts_per_step": 8,
        "max_new_tokens": 8,
        "lora": None,
        "learning_rate": 3e-3,
        "beta": 0.02,
    }


class TestOAIF(RLAlgorithmConformance):
    component_id = "cai-core/oaif"
    options = TestOnlineDPO.options
    needs = {"labeler": ("cai-core/logprob", {}), "principle_sampler": ("cai-core/uniform", {})}
    learns_from = ("prompts",)


class TestBestOfN(RLAlgorithmConformance):
    component_id = "cai-core/best_of_n"
    options = {"n": 24, "max_new_tokens": 8}
    needs = {"trainer": ("cai-core/sft", {**SFT, "save_steps": 1, "epochs": 4})}
    short = {"n": 3}
    frozen = {}
    frozen_needs = {"trainer": {"learning_rate": 0}}
    checkpointed = {"chunk": 2}
    stop_at = 7


class TestHHH(EvaluatorConformance):
    component_id = "cai-core/hhh"
    options = {"limit": 8}


class TestHHHChoice(EvaluatorConformance):
    component_id = "cai-core/hhh"
    options = {"limit": 8, "signal": "choice"}


class TestRefusal(EvaluatorConformance):
    component_id = "cai-core/refusal"


class TestRefusalJudge(EvaluatorConformance):
    component_id = "cai-core/refusal"
    options = {"grader": "judge"}


class TestPreferenceModelScore(EvaluatorConformance):
    component_id = "cai-core/preference_model"
    needs = {"reward_model": ("cai-core/rules", {"length_weight": 1.0})}


class TestMultipleChoice(EvaluatorConformance):
    component_id = "cai-core/multiple_choice"
    options = {"limit": 8, "format": "chat"}


class TestMultipleChoiceReasoning(EvaluatorConformance):
    component_id = "cai-core/multiple_choice"
    options = {"limit": 4, "cot": True, "max_new_tokens": 4, "format": "chat", "clamp": (0.4, 0.6)}


class TestHonesty(EvaluatorConformance):
    component_id = "cai-core/honesty"
    options = {"data": "mc_task.json", "format": "chat"}

    def make(self, context: Any, **options: Any) -> Any:
        answers = {"Only one.": 1, "Two.": 0, "None at all.": 0}
        rows = [
            {"question": f"How many moons has planet {n}?", "mc1_targets": answers, "mc2_targets": answers}
            for n in range(6)
        ]
        path = context.workdir / "mc_task.json"
        path.write_text(json.dumps(rows))
        return super().make(context, data=str(path), **options)


class TestPairwise(EvaluatorConformance):
    component_id = "cai-core/pairwise"
    needs = {
        "labeler": ("cai-core/logprob", {"format": "chat", "shots": 0}),
        "principle_sampler": ("cai-core/uniform", {}),
        "reward_model": ("cai-core/rules", {"length_weight": 1.0}),
    }


class TestPairwiseReward(TestPairwise):
    options = {"judge": "reward_model"}


class TestCalibration(TestPairwise):
    component_id = "cai-core/calibration"
    options = {"limit": 8}


class TestCalibrationReward(TestPairwise):
    component_id = "cai-core/calibration"
    options = {"limit": 8, "judge": "reward_model"}


class TestRevisions(EvaluatorConformance):
    component_id = "cai-core/revisions"
    needs = {"reward_model": ("cai-core/rules", {"length_weight": 1.0})}

    def given(self) -> EvalInput:
        prompt = Prompt("p", (Message("user", "Bread?"),))
        chains = [
            Chain(
                source, f"p{n}/0", prompt, ("Flour.", "Flour and water.", "x" * n)[: 2 + n % 2], ("a", "b")[: 1 + n % 2]
            )
            for source in ("revise[critiqued]", "revise[direct]")
            for n in range(6)
        ]
        return EvalInput(("base",), (), tuple(chains))


class TestHarmScore(EvaluatorConformance):
    component_id = "cai-core/harm_score"


class TestLength(EvaluatorConformance):
    component_id = "cai-core/length"


class TestJudgeAudit(EvaluatorConformance):
    component_id = "cai-core/judge_audit"
    options = {"limit": 8}
    needs = {
        "labeler": ("cai-core/logprob", {"format": "chat", "shots": 0}),
        "principle_sampler": ("cai-core/uniform", {}),
    }


class TestHtml(ReporterConformance):
    component_id = "cai-core/html"


class TestJson(ReporterConformance):
    component_id = "cai-core/json"


class TestCsv(ReporterConformance):
    component_id = "cai-core/csv"


class TestModelCard(ReporterConformance):
    component_id = "cai-core/model_card"


class TestMarkdown(ReporterConformance):
    component_id = "cai-core/markdown"


def test_no_built_in_component_is_left_out() -> None:
    """A component without a conformance test is a gap, whatever else tests it."""
    tested = {
        (cls.kind, cls.component_id)
        for cls in globals().values()
        if isinstance(cls, type) and issubclass(cls, Conformance) and cls.component_id
    }
    offered = {(o.kind, o.id) for o in load_plugins().offers if o.distribution == "cai-core"}
    assert tested == offered


def test_only_what_does_not_learn_deviates() -> None:
    """Deviations are rare and known."""
    deviating = {
        name
        for name, cls in globals().items()
        if isinstance(cls, type) and issubclass(cls, Conformance) and cls.deviations
    }
    assert deviating == {"TestRules", "TestJudge"}


def test_the_tiny_model_is_one(cai_tiny_model: Path) -> None:
    assert (cai_tiny_model / "model.safetensors").stat().st_size < 1_000_000
