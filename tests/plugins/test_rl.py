"""RL algorithms: a scripted reward goes up, learning rate 0 changes nothing, and a restart goes on where it was."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
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
from cai_plugins.rl.by_n import best_of
from cai_plugins.rl.checks import check_signal
from cai_plugins.rl.grouped import filled
from cai_plugins.rl.plugin import BestOfNOptions, GRPOOptions, RLOOOptions, make_best_of_n, make_grpo, make_rloo
from cai_plugins.rl.prompts import layout
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


def rloo(**options: Any) -> RLOOOptions:
    small = grpo(**options).model_dump(exclude={"scale_rewards", "loss", "beta"})
    return RLOOOptions(**small)


def test_rloo_says_what_does_not_fit(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not divide"):
        make_rloo(rloo(micro_batch=5), Context(tmp_path / "w"))
    with pytest.raises(UserError, match="there are 1 prompts"):
        make_rloo(rloo(), Context(tmp_path / "v")).train(model, PROMPTS[:1], LetterE(), tmp_path / "o")


def test_rloo_earns_the_reward_less_the_kl(model: Path, tmp_path: Path) -> None:
    """From the same first samples, a reward that KL eats up leaves the policy nearer to the reference."""
    free = make_rloo(rloo(), Context(tmp_path / "a")).train(model, PROMPTS, LetterE(), tmp_path / "free")
    dear = rloo().model_copy(update={"beta": 1.0})
    held = make_rloo(dear, Context(tmp_path / "b")).train(model, PROMPTS, LetterE(), tmp_path / "held")
    assert free.curve[0]["reward"] == held.curve[0]["reward"]
    assert held.metrics["kl_last"] < free.metrics["kl_last"]


def test_every_update_on_a_batch_has_its_reward_and_kl(model: Path, tmp_path: Path) -> None:
    """TRL logs them at the first update alone."""
    for name, made in (("grpo", make_grpo(grpo(steps=4, updates_per_batch=2, beta=0.1), Context(tmp_path / "g"))),
                       ("rloo", make_rloo(rloo(steps=4, updates_per_batch=2), Context(tmp_path / "r")))):
        result = made.train(model, PROMPTS, LetterE(), tmp_path / name)
        assert [row["step"] for row in result.curve] == [1, 2, 3, 4]
        assert all({"reward", "kl", "length"} <= row.keys() for row in result.curve)
        assert result.curve[0]["reward"] == result.curve[1]["reward"] != result.curve[2]["reward"]
        assert result.metrics["samples"] == 2 * 16


def test_kl_is_per_sequence_on_every_row() -> None:
    log = [
        {"step": 1, "reward": 2.0, "kl": 0.5, "completions/mean_length": 10.0, "loss": 1.0},
        {"step": 2, "loss": 3.0},
        {"step": 3, "kl": 0.25, "loss": 4.0},
        {"step": 4, "reward": 5.0, "completions/mean_length": 4.0, "kl": 1.0, "loss": 6.0},
    ]
    found = filled(log)
    assert [row["kl"] for row in found] == [5.0, 5.0, 2.5, 4.0]
    assert [row["kl_token"] for row in found] == [0.5, 0.5, 0.25, 1.0]
    assert [row["reward"] for row in found] == [2.0, 2.0, 2.0, 5.0]
    assert [row["loss"] for row in found] == [1.0, 3.0, 4.0, 6.0]


def test_a_constant_reward_stops_before_anything_is_learnt(model: Path, tmp_path: Path) -> None:
    constant = SimpleNamespace(score=lambda exchanges: [0.25] * len(exchanges))
    trainer = Trainer()
    made = {
        "grpo": make_grpo(grpo(save_steps=1), Context(tmp_path / "g")),
        "rloo": make_rloo(rloo(save_steps=1), Context(tmp_path / "r")),
        "best_of_n": make_best_of_n(
            BestOfNOptions(n=4), Context(tmp_path / "b", policy=Policy(), trainer=trainer)
        ),
    }
    for name, algorithm in made.items():
        with pytest.raises(UserError, match=r"the reward is 0\.25 for all 16 first answers"):
            algorithm.train(model, PROMPTS, constant, tmp_path / name)
        assert not (tmp_path / name).exists()
    assert not list(tmp_path.rglob("checkpoint-*"))
    assert not trainer.examples


def test_few_equal_rewards_may_be_chance() -> None:
    check_signal(["a", "b", "c"], [1.0, 1.0, 1.0])
    check_signal(["a"] * 20, [1.0] * 20)  # one answer has one reward
    check_signal([str(i) for i in range(20)], [0.0] * 19 + [1.0])


def test_a_policy_that_cannot_end_is_refused(model: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    shutil.copytree(model, endless)
    settings = json.loads((endless / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (endless / "tokenizer_config.json").write_text(json.dumps(settings))
    (endless / "special_tokens_map.json").unlink(missing_ok=True)
    context = Context(tmp_path / "b", policy=Policy(), trainer=Trainer())
    for made in (make_grpo(grpo(), context), make_rloo(rloo(), context), make_best_of_n(BestOfNOptions(), context)):
        with pytest.raises(UserError, match="no end-of-text token"):
            made.train(endless, PROMPTS, LetterE(), tmp_path / "o")


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


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=7), st.integers(1, 7))
def test_the_best_of_n_out_of_more_samples_is_the_mean_over_all_choices(pairs: list[tuple[int, int]], n: int) -> None:
    n = min(n, len(pairs))
    picked = [max(some, key=lambda i: (pairs[i][0], -i)) for some in combinations(range(len(pairs)), n)]
    wanted = sum(pairs[i][1] for i in picked) / len(picked)
    assert best_of(n, [r for r, _ in pairs], [v for _, v in pairs]) == pytest.approx(wanted)


def test_best_of_n_shows_what_a_held_out_reward_thinks_of_it(model: Path, tmp_path: Path) -> None:
    """One that likes the opposite falls as the reward rises."""
    context = Context(tmp_path / "w", policy=Policy({"p1/3"}), trainer=Trainer())
    context.heldout = SimpleNamespace(score=lambda exchanges: [-10 * score for score in LetterE().score(exchanges)])
    result = make_best_of_n(BestOfNOptions(n=4, chunk=3), context).train(model, PROMPTS, LetterE(), tmp_path / "o")
    found = result.extra["validation"]
    assert [row["step"] for row in found["rows"]] == [1, 2, 4]
    assert [row["kl"] for row in found["rows"]] == [math.log(k) - (k - 1) / k for k in (1, 2, 4)]
    assert found["prompts"] == 3, "a prompt lacks a sample"
    rewards, others = ([row[name] for row in found["rows"]] for name in ("reward", "heldout_reward"))
    assert rewards == sorted(rewards)
    assert others == pytest.approx([-10 * reward for reward in rewards])
    assert "and highest" in found["why"]
    assert found["why"] == result.notes[0]


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
