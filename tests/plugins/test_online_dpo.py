"""Online DPO: one step beside a naive one, a known optimum, what it refuses and when it stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from known_optimum import PROMPT, Scores, outcome, table
from training import Context, Interrupted, same, turns, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai_core.errors import CAIError, UserError
from cai_core.registry import identity_options
from cai_core.testing.rl import LetterE
from cai_core.testing.tiny import tiny_model
from cai_core.types.prompts import Prompt
from cai_core.types.reward import Exchange
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.seeding import derived, seed32
from cai_plugins.rl.plugin import OnlineDPOOptions, PPOOptions, make_online_dpo
from cai_plugins.rl.prompts import layout
from draws import plain_draw

PROMPTS = [Prompt(f"p{i}", turns(f"How do I bake {'very ' * (i % 3)}good bread {i}?")) for i in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny")


def train(
    folder: Path, model: Path, *, reward: Any = None, prompts: Sequence[Prompt] = PROMPTS, stop_at: int | None = None,
    seed: int = 11, out: str = "out", **options: Any,
) -> TrainResult:  # fmt: skip
    small = {"steps": 4, "prompts_per_step": 4, "max_new_tokens": 8, "lora": None, "learning_rate": 3e-3}
    context = Context(folder / "w", stop_at=stop_at, seed=seed)
    algorithm = make_online_dpo(OnlineDPOOptions(**{**small, **options}), context)
    return algorithm.train(model, prompts, reward or LetterE(), folder / out)


def script(of: Callable[[str], float]) -> Any:
    return SimpleNamespace(score=lambda exchanges: [of(exchange.response) for exchange in exchanges])


class Tenfold(LetterE):
    """The share of a letter in the unit of a preference model."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [10 * score for score in super().score(exchanges)]


def test_one_step_is_that_of_a_naive_loop(model: Path, tmp_path: Path) -> None:
    """No padding, no batches, no cache; TRL's loss of hard labels, mixed by the probability."""
    beta, rate, temperature = 0.3, 3e-3, 0.8
    changed = {"steps": 1, "beta": beta, "temperature": temperature, "micro_batch": 2}
    result = train(tmp_path, model, reward=Tenfold(), prompts=PROMPTS[:4], **changed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy, reference = (AutoModelForCausalLM.from_pretrained(model).eval() for _ in range(2))
    loss = torch.tensor(0.0)
    rewards = []
    (row,) = result.curve
    for place, i in enumerate(layout(4, 4, seed32(11, "prompts"))):
        prompt = PROMPTS[i]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.messages[0].content}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        sides = []
        for k in range(2):
            answer: list[int] = []
            while len(answer) < 8:
                with torch.no_grad():
                    logits = policy(torch.tensor([ids + answer])).logits[0, -1]
                seed = derived(11, "rollout", prompt.id, 1, place, k)
                answer.append(plain_draw((logits / temperature).softmax(-1), seed, len(answer)))
                if answer[-1] in tokenizer.all_special_ids:
                    break
            written = tokenizer.decode(answer, skip_special_tokens=True)
            rewards.append(10 * written.count("e") / max(1, len(written)))
            logps = []
            for one in (policy, reference):
                before = slice(len(ids) - 1, len(ids) + len(answer) - 1)
                shares = (one(torch.tensor([ids + answer])).logits[0, before] / temperature).log_softmax(-1)
                logps.append(shares[range(len(answer)), answer].sum())
            sides.append(logps[0] - logps[1].detach())
        p = 1 / (1 + math.exp(rewards[-1] - rewards[-2]))
        for margin, share in ((sides[0] - sides[1], p), (sides[1] - sides[0], 1 - p)):
            loss = loss - share * torch.nn.functional.logsigmoid(beta * margin) / 4
    assert row["reward"] == pytest.approx(sum(rewards) / 8)
    assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-5) == pytest.approx(math.log(2), rel=1e-4)
    optimizer = torch.optim.AdamW(policy.parameters(), rate, weight_decay=0.0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    first, ours = weights(model), weights(tmp_path / "out")
    moved = sum(float(((value - first[name]) ** 2).sum()) for name, value in policy.state_dict().items())
    apart = sum(float(((value - ours[name]) ** 2).sum()) for name, value in policy.state_dict().items())
    assert moved > 0
    assert math.sqrt(apart / moved) < 0.01


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_on_a_table_it_comes_within_two_percent_of_the_optimum(tmp_path: Path, seed: int) -> None:
    """Soft labels make its optimum that of E[r] - beta KL; hard ones would not."""
    given, beta = table(tmp_path / "given", seed), 0.3
    prompts = [Prompt(f"p{i}", PROMPT.messages) for i in range(64)]
    options = OnlineDPOOptions(
        steps=200, prompts_per_step=64, max_new_tokens=1, learning_rate=1e-2, schedule="linear", beta=beta,
        max_empty=1.0, save_steps=200, lora=None,
    )  # fmt: skip
    algorithm = make_online_dpo(options, Context(tmp_path / "w", seed=seed))
    algorithm.train(given, prompts, Scores(), tmp_path / "out")
    result = outcome(given, tmp_path / "out", beta)
    assert result.given < 0.6 * result.best, "there is something to gain"
    assert 0.98 * result.best < result.found <= result.best


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["all weights", "lora"])
def test_learning_rate_zero_leaves_every_bit(model: Path, tmp_path: Path, lora: Any) -> None:
    train(tmp_path, model, steps=2, learning_rate=0, weight_decay=0.1, lora=lora)
    assert same(model, tmp_path / "out")


def test_micro_batches_are_a_matter_of_memory(model: Path, tmp_path: Path) -> None:
    whole = train(tmp_path / "a", model, steps=1)
    parts = train(tmp_path / "b", model, steps=1, micro_batch=1, gradient_checkpointing=True)
    for name, value in whole.curve[0].items():
        assert parts.curve[0][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("options", [{"save_steps": 2, "schedule": "cosine"}, {"save_steps": 1, "lora": {"rank": 2}}])
def test_stopped_anywhere_it_ends_with_the_same_weights_and_curve(
    model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = train(tmp_path / "whole", model, **options)
    for at in range(1, 4):
        with pytest.raises(Interrupted):
            train(tmp_path / str(at), model, stop_at=at, **options)
        again = train(tmp_path / str(at), model, **options)
        assert same(tmp_path / "whole" / "out", tmp_path / str(at) / "out"), at
        assert again.curve == whole.curve


def test_the_curve(model: Path, tmp_path: Path) -> None:
    result = train(tmp_path, model)
    wanted = {
        "step", "reward", "reward_std", "kl", "loss", "accuracy", "label_gap", "equal", "length", "missing_end",
        "empty", "refusal", "repetition", "boilerplate", "grad_norm", "learning_rate",
    }  # fmt: skip
    assert all(row.keys() == wanted for row in result.curve)
    assert result.curve[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert result.curve[0]["accuracy"] == pytest.approx(0.5)
    assert result.metrics["samples"] == 4 * 8


@pytest.mark.parametrize(
    ("of", "kind", "words"),
    [
        (lambda text: math.nan, CAIError, "must be finite"),
        (lambda text: 1.0, UserError, "the reward is 1.0 for all 8 first answers"),
    ],
    ids=["nan", "constant"],
)
def test_a_reward_that_cannot_be_learnt_from(model: Path, tmp_path: Path, of: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind, match=words) as raised:
        train(tmp_path, model, reward=script(of))
    assert raised.value.where == "reward"
    assert raised.value.hint
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "w").rglob("checkpoint-*"))


def test_an_exploding_kl_ends_with_the_last_policy_that_was_in_order(model: Path, tmp_path: Path) -> None:
    common = {"steps": 8, "learning_rate": 2e-2, "save_steps": 1}
    free = train(tmp_path / "free", model, max_kl=None, **common)
    kls = [row["kl"] for row in free.curve]
    at = next(i for i, kl in enumerate(kls) if i >= 2 and kl > max(kls[:i]))
    limit = (max(kls[:at]) + kls[at]) / 2
    result = train(tmp_path / "held", model, max_kl=limit, **common)
    assert (result.metrics["stopped"], result.metrics["steps"]) == (at + 1, at - 1)
    assert any("max_kl" in note for note in result.notes)
    train(tmp_path / "short", model, max_kl=None, **{**common, "steps": at - 1})
    assert same(tmp_path / "held" / "out", tmp_path / "short" / "out")
    with pytest.raises(CAIError, match="no earlier checkpoint is known to be good"):
        train(tmp_path / "none", model, max_kl=limit, **{**common, "save_steps": 100})


def test_what_does_not_fit(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not divide") as raised:
        train(tmp_path, model, micro_batch=3)
    assert raised.value.where == "rl.micro_batch"
    with pytest.raises(UserError, match="no prompt fits") as raised:
        train(tmp_path, model, prompts=[Prompt("long", turns("How do I bake bread? " * 200))])
    assert raised.value.where == "rl.max_new_tokens"


@pytest.mark.parametrize("options", [OnlineDPOOptions, PPOOptions])
def test_what_trouble_leads_back_to_is_a_part_of_what_a_result_is_known_by(options: Any) -> None:
    """Else a policy that was stopped would be reused where other checkpoints were asked for."""
    assert identity_options(options(save_steps=5)) != identity_options(options())
