"""RL algorithms: a scripted reward goes up, learning rate 0 changes nothing, and a restart goes on where it was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training import Context, Interrupted, same, turns

from cai_core.errors import CAIError, UserError
from cai_core.testing.tiny import tiny_model
from cai_core.types.backend import Completion, GenerateRequest
from cai_core.types.prompts import Prompt
from cai_core.types.records import UnitFailure
from cai_core.types.reward import Exchange
from cai_plugins.backends.plugin import TransformersOptions, make_transformers
from cai_plugins.rl.grpo import layout
from cai_plugins.rl.plugin import BestOfNOptions, GRPOOptions, make_best_of_n, make_grpo
from cai_plugins.trainers.plugin import SFTOptions, make_sft

PROMPTS = [Prompt(f"p{i}", turns(f"How do I bake {i} breads?")) for i in range(4)]


class LetterE:
    """Rewards the share of one letter, which any policy can learn to write more of."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [e.response.count("e") / max(1, len(e.response)) for e in exchanges]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny")


def grpo(**options: Any) -> GRPOOptions:
    small = {"steps": 12, "prompts_per_step": 2, "samples_per_prompt": 8, "max_new_tokens": 8, "lora": None}
    return GRPOOptions(**{**small, "learning_rate": 1e-2, "beta": 0.0, **options})


def test_grpo_says_what_does_not_fit(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not divide"):
        make_grpo(grpo(micro_batch=5), Context(tmp_path / "w"))
    with pytest.raises(UserError, match="there are 1 prompts"):
        make_grpo(grpo(), Context(tmp_path / "v")).train(model, PROMPTS[:1], LetterE(), tmp_path / "o")
    broken = SimpleNamespace(score=lambda exchanges: [math.nan] * len(exchanges))
    with pytest.raises(CAIError, match="must be finite"):
        make_grpo(grpo(steps=1), Context(tmp_path / "u")).train(model, PROMPTS, broken, tmp_path / "p")


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 5))
def test_every_prompt_comes_once_per_pass(prompts: int, wanted: int, seed: int) -> None:
    order = layout(prompts, wanted, seed)
    assert len(order) == wanted
    for start in range(0, wanted - prompts + 1, prompts):
        assert sorted(order[start : start + prompts]) == list(range(prompts))


class Policy:
    """Numbers its answers; fails where told."""

    def __init__(self, fail: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self.asked: list[str] = []
        self.fail = fail

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        for request in reversed(requests):
            self.asked.append(request.id)
            if request.id in self.fail:
                yield Completion(request.id, "", "error", failure=UnitFailure("infra", "down"))
            else:
                yield Completion(request.id, f"answer {request.id} {'e' * int(request.id[-1])}", "stop")

    def close(self) -> None:
        pass


class Trainer:
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.examples: Sequence[Any] = ()

    def train(self, model: Path, examples: Sequence[Any], out: Path) -> Any:
        self.examples = list(examples)
        return SimpleNamespace(metrics={"loss": 1.0}, notes=[], curve=[])


def test_best_of_n_keeps_the_rewards_favourite(model: Path, tmp_path: Path) -> None:
    policy, trainer = Policy({"p1/3"}), Trainer()
    context = Context(tmp_path / "w", policy=policy, trainer=trainer)
    result = make_best_of_n(BestOfNOptions(n=4, chunk=3), context).train(model, PROMPTS, LetterE(), tmp_path / "o")
    best = {example.id: example.messages[-1].content for example in trainer.examples}
    assert best == {p.id: f"answer {p.id}/{k} {'e' * k}" for p, k in zip(PROMPTS, (3, 2, 3, 3), strict=True)}
    assert result.metrics["reward_best"] > result.metrics["reward_mean"]
    assert result.metrics["kl_bound"] == pytest.approx(math.log(4) - 3 / 4)


def test_best_of_n_draws_no_sample_twice(model: Path, tmp_path: Path) -> None:
    options = BestOfNOptions(n=2, chunk=1)
    policy, trainer = Policy(), Trainer()
    stopped = Context(tmp_path / "w", policy=policy, trainer=trainer, stop_at=3)
    with pytest.raises(Interrupted):
        make_best_of_n(options, stopped).train(model, PROMPTS, LetterE(), tmp_path / "o")
    context = Context(tmp_path / "w", policy=policy, trainer=trainer)
    make_best_of_n(options, context).train(model, PROMPTS, LetterE(), tmp_path / "o")
    assert sorted(policy.asked) == sorted(f"{p.id}/{k}" for p in PROMPTS for k in range(2))


def test_best_of_n_on_a_real_model_writes_a_policy(model: Path, tmp_path: Path) -> None:
    backend = make_transformers(TransformersOptions(model=str(model)), SimpleNamespace(device="cpu"))
    trainer = make_sft(SFTOptions(), Context(tmp_path / "t"))
    context = Context(tmp_path / "w", policy=backend, trainer=trainer)
    options = BestOfNOptions(n=3, max_new_tokens=6)
    result = make_best_of_n(options, context).train(model, PROMPTS, LetterE(), tmp_path / "out")
    assert result.metrics["samples"] == 12
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not same(model, tmp_path / "out")
