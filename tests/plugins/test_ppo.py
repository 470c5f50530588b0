"""PPO: one update beside a naive one, padding, what it refuses, when it stops, and that a restart changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from known_optimum import PROMPT, Scores, outcome, table
from training import Context, Interrupted, same, turns, weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cai_core.errors import CAIError, UserError
from cai_core.testing.rl import LetterE
from cai_core.testing.tiny import tiny_model
from cai_core.types.prompts import Prompt
from cai_core.types.reward import Exchange
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.seeding import derived
from cai_plugins.rl.plugin import PPOOptions, make_ppo
from cai_plugins.rl.ppo import _Learner
from draws import plain_draw

PROMPTS = [Prompt(f"p{i}", turns(f"How do I bake {'very ' * (i % 3)}good bread {i}?")) for i in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny")


def ppo(**options: Any) -> PPOOptions:
    small = {"steps": 4, "prompts_per_step": 3, "samples_per_prompt": 4, "max_new_tokens": 8, "minibatches": 2}
    return PPOOptions(**{**small, "lora": None, "learning_rate": 3e-3, **options})


def train(
    folder: Path, model: Path, *, reward: Any = None, prompts: Sequence[Prompt] = PROMPTS, stop_at: int | None = None,
    seed: int = 11, out: str = "out", **options: Any,
) -> TrainResult:  # fmt: skip
    context = Context(folder / "w", stop_at=stop_at, seed=seed)
    return make_ppo(ppo(**options), context).train(model, prompts, reward or LetterE(), folder / out)


class Script:
    """A reward that is a function of the number of the call and the answers."""

    def __init__(self, scores: Callable[[int, Sequence[str]], list[float]]) -> None:
        self.scores = scores
        self.calls = 0

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        self.calls += 1
        return self.scores(self.calls, [exchange.response for exchange in exchanges])


def letters(call: int, texts: Sequence[str]) -> list[float]:
    return [text.count("e") / max(1, len(text)) for text in texts]


def learner(model: Path, tmp_path: Path, micro: int = 4, **options: Any) -> _Learner:
    return _Learner(ppo(**options), Context(tmp_path / "l"), model, AutoTokenizer.from_pretrained(model), micro)


# one update beside a naive one ---------------------------------------------------------------------------------------


def naive_step(model: Path, prompts: Sequence[Prompt], options: PPOOptions, seed: int) -> tuple[Any, dict[str, float]]:
    """One batch and one pass without minibatches, written as plainly as can be: no padding, no batches, no cache, no
    library of ours but the numbers that a draw comes from. Returns the policy after it, and what it saw."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model).eval()
    head = torch.nn.Linear(policy.config.hidden_size, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    samples: list[tuple[list[int], list[int], float]] = []
    for prompt in prompts:
        chat = [{"role": m.role, "content": m.content} for m in prompt.messages]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for k in range(options.samples_per_prompt):
            answer: list[int] = []
            while len(answer) < options.max_new_tokens:
                with torch.no_grad():
                    logits = policy(torch.tensor([ids + answer])).logits[0, -1]
                number = derived(seed, "rollout", prompt.id, 1, k)
                answer.append(plain_draw((logits / options.temperature).softmax(-1), number, len(answer)))
                if answer[-1] in tokenizer.all_special_ids:
                    break
            text = tokenizer.decode(answer, skip_special_tokens=True)
            score = text.count("e") / max(1, len(text))
            if answer[-1] != tokenizer.eos_token_id:
                score -= options.missing_end_penalty
            samples.append((ids, answer, score))

    def read(ids: list[int], answer: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        output = policy(torch.tensor([ids + answer]), output_hidden_states=True)
        before = slice(len(ids) - 1, len(ids) + len(answer) - 1)
        shares = (output.logits[0, before] / options.temperature).log_softmax(-1)
        return shares[range(len(answer)), answer], head(output.hidden_states[-1][0, before])[:, 0]

    old, advantages, returns = [], [], []
    for ids, answer, score in samples:
        with torch.no_grad():
            logp, values = read(ids, answer)
        old.append(logp)
        rewards = [0.0] * (len(answer) - 1) + [score]  # the reference is the policy: no KL at the first step
        found, following = [], 0.0
        for t in range(len(answer) - 1, -1, -1):
            later = float(values[t + 1]) if t + 1 < len(answer) else 0.0
            following = rewards[t] + options.gamma * later - float(values[t]) + options.gamma * options.lam * following
            found.insert(0, following)
        advantages.append(found)
        returns.append([a + float(v) for a, v in zip(found, values, strict=True)])
    flat = torch.tensor([a for row in advantages for a in row])
    mean, deviation = flat.mean(), flat.std(correction=0)

    optimizer = torch.optim.AdamW([*policy.parameters(), *head.parameters()], options.learning_rate, weight_decay=0.0)
    for _ in range(options.epochs):
        loss = torch.tensor(0.0)
        for (ids, answer, _), before, gains, wanted in zip(samples, old, advantages, returns, strict=True):
            logp, values = read(ids, answer)
            for t in range(len(answer)):
                ratio = (logp[t] - before[t]).exp()
                gain = (gains[t] - mean) / deviation
                clipped = ratio.clamp(1 - options.clip, 1 + options.clip)
                loss = loss - torch.minimum(ratio * gain, clipped * gain) / len(flat)
                loss = loss + options.value_coef * 0.5 * (values[t] - wanted[t]) ** 2 / len(flat)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), options.max_grad_norm)
        torch.nn.utils.clip_grad_norm_(head.parameters(), options.max_grad_norm)
        optimizer.step()
    return policy, {"reward": sum(s for _, _, s in samples) / len(samples), "length": len(flat) / len(samples)}


@pytest.mark.parametrize(
    "changed",
    [{}, {"epochs": 3, "learning_rate": 1e-2, "temperature": 0.8, "gamma": 0.9, "missing_end_penalty": 0.25}],
    ids=["one pass", "three passes"],
)
def test_one_step_is_that_of_a_naive_loop(model: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    """The same policy, reward and length; weights as far apart as rounding. Three passes move ratios over the clip."""
    changed = {"steps": 1, "prompts_per_step": 3, "minibatches": 1, "micro_batch": 4, "value_clip": None, **changed}
    options = ppo(**changed)
    result = train(tmp_path, model, prompts=PROMPTS[:3], **changed)
    policy, seen = naive_step(model, PROMPTS[:3], options, seed=11)
    (row,) = result.curve
    assert row["length"] == pytest.approx(seen["length"])
    assert row["reward"] - options.missing_end_penalty * row["missing_end"] == pytest.approx(seen["reward"])
    assert row["kl"] == pytest.approx(0, abs=1e-5)
    assert (row["clip_fraction"] > 0) == (options.epochs > 1)
    first, ours = weights(model), weights(tmp_path / "out")
    moved = apart = 0.0
    for name, value in policy.state_dict().items():
        moved += float(((value - first[name]) ** 2).sum())
        apart += float(((value - ours[name]) ** 2).sum())
    assert moved > 0
    # Adam divides by the gradient's size, so that where it is nothing but rounding a weight may go either way.
    assert math.sqrt(apart / moved) < 0.01


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_on_a_table_it_comes_within_two_percent_of_the_optimum(tmp_path: Path, seed: int) -> None:
    """E[r] - beta KL against the best that any policy can have."""
    given, beta = table(tmp_path / "given", seed), 0.3
    options = ppo(
        steps=100, prompts_per_step=1, samples_per_prompt=64, max_new_tokens=1, learning_rate=1e-2, schedule="linear",
        beta=beta, max_empty=1.0, save_steps=100,
    )  # fmt: skip
    make_ppo(options, Context(tmp_path / "w", seed=seed)).train(given, [PROMPT], Scores(), tmp_path / "out")
    result = outcome(given, tmp_path / "out", beta)
    assert result.given < 0.6 * result.best, "there is something to gain"
    assert 0.98 * result.best < result.found <= result.best


# reading -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def absolute(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose positions are numbers, not distances: a wrong one shows."""
    folder = tmp_path_factory.mktemp("absolute")
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=len(tokenizer), n_positions=128, initializer_range=0.2,
        bos_token_id=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("options", [{}, {"critic": "separate"}, {"lora": {"rank": 2}}], ids=["head", "own", "lora"])
@pytest.mark.parametrize("positions", ["model", "absolute"])
def test_padding_changes_nothing(
    positions: str, tmp_path: Path, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """What is read of an answer is what is read of it alone, whatever stands beside it; gradients too."""
    model = request.getfixturevalue(positions)
    own = learner(model, tmp_path, **options)
    with torch.no_grad():  # a head at zero would hide a mistake
        for part in own.parts.values():
            for value in part.weights.values():
                value += torch.linspace(-0.2, 0.2, value.numel()).view(value.shape)
    samples = [([5, 6, 7], [8, 9, 10, 11]), ([5] * 20, [12]), ([40, 41], [42, 43, 44, 45, 46, 47]), ([9], [3, 2])]
    together = own.measure(samples)
    gradients = []
    for batches in ([samples], [[sample] for sample in samples]):
        for batch in batches:
            logp, values, _ = own.forward(batch)
            for i, (_, answer) in enumerate(batch):
                (logp[i, -len(answer) :].sum() + (values[i, -len(answer) :] ** 2).sum()).backward(retain_graph=True)
        learnt = [value for part in own.parts.values() for value in part.weights.values()]
        gradients.append([value.grad.clone() for value in learnt if value.grad is not None])
        for part in own.parts.values():
            part.optimizer.zero_grad()
    for i, sample in enumerate(samples):
        alone = own.measure([sample])
        for name in ("logp", "kl", "values", "entropy"):
            whole, single = getattr(together, name)[i], getattr(alone, name)[0]
            assert torch.allclose(whole[-len(single) :], single, atol=1e-4), name
            assert (whole[: -len(single)] == 0).all()
            assert (single != 0).any()
    assert together.mask.sum(1).tolist() == [4, 1, 6, 2]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-3)


def test_the_reference_is_the_policy_as_given_after_learning(model: Path, tmp_path: Path) -> None:
    """With adapters, which are switched off, and without, from a copy; with the critic in both forms."""
    samples = [([5, 6, 7], [8, 9, 10, 11]), ([5] * 9, [12])]
    plain = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        shares = plain(torch.tensor([[5, 6, 7, 8, 9, 10, 11]])).logits[0, 2:6].log_softmax(-1)
    wanted = shares[range(4), [8, 9, 10, 11]]
    for i, options in enumerate(({"lora": {"rank": 2}}, {"lora": None})):
        own = learner(model, tmp_path / str(i), **options)
        assert own.measure(samples).kl.abs().max() == 0
        assert (own._frozen is None) == (options["lora"] is not None), "adapters need no second copy"
        with torch.no_grad():
            for value in own.parts["policy"].weights.values():
                value += 0.05
        seen = own.measure(samples)
        assert seen.kl.abs().max() > 1e-3
        assert torch.allclose(seen.logp[0] - seen.kl[0], wanted, atol=1e-5)


def test_rollouts_follow_the_live_weights(model: Path, tmp_path: Path) -> None:
    """Nothing that the decoder keeps outlives an update, and the training's own attention is back afterwards."""
    own = learner(model, tmp_path, max_new_tokens=6)
    algorithm = make_ppo(ppo(samples_per_prompt=8, prompts_per_step=1, max_new_tokens=6), Context(tmp_path / "w"))
    long = Prompt("long", turns("How do I bake bread? " * 12))
    requests = algorithm._requests([long], 1)
    ids = own.tokenizer.apply_chat_template([{"role": "user", "content": long.messages[0].content}], tokenize=False)
    prompt = own.tokenizer(ids)["input_ids"]
    before = own.model.config._attn_implementation
    assert own.rollouts.shares, "this model's attention can share what prompts have in common"
    first = own.sample(requests, [prompt] * 8)
    assert own.sample(requests, [prompt] * 8) == first
    assert own.model.config._attn_implementation == before
    with torch.no_grad():
        for value in own.parts["policy"].weights.values():
            value.mul_(0.8)
    changed = own.sample(requests, [prompt] * 8)
    assert changed != first
    own.rollouts.shares = False
    assert own.sample(requests, [prompt] * 8) == changed, "a plain loop draws the same"


def test_a_model_that_the_decoder_does_not_fit_is_trained_all_the_same(model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "bloom", hidden_size=32, n_layer=2, n_head=4, vocab_size=len(tokenizer), hidden_dropout=0.3,
        attention_dropout=0.3, bos_token_id=1, eos_token_id=tokenizer.eos_token_id, initializer_range=0.2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    assert not learner(tmp_path / "m", tmp_path).rollouts.shares
    result = train(tmp_path, tmp_path / "m", steps=2, minibatches=1, gradient_checkpointing=True)
    assert [row["ratio"] for row in result.curve] == pytest.approx([1, 1], abs=1e-5), "no dropout, no padding in it"
    assert not same(tmp_path / "m", tmp_path / "out")


# what the options do -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": {"rank": 4}}, {"critic": "separate"}, {"lora": {"rank": 4}, "critic": "separate"}],
    ids=["head", "lora", "separate", "lora, separate"],
)
def test_learning_rate_zero_leaves_every_bit(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Even where the critic learns."""
    train(tmp_path, model, steps=2, learning_rate=0, critic_learning_rate=1e-2, weight_decay=0.1, **options)
    assert same(model, tmp_path / "out")


def test_micro_batches_are_a_matter_of_memory(model: Path, tmp_path: Path) -> None:
    whole = train(tmp_path, model, steps=1, out="a")
    # A work folder of its own: checkpoints of the other would be taken up.
    parts = train(tmp_path / "b", model, steps=1, micro_batch=2, out="b")
    first, a, b = weights(model), weights(tmp_path / "a"), weights(tmp_path / "b" / "b")
    moved = sum(float(((a[name] - first[name]) ** 2).sum()) for name in a)
    assert sum(float(((a[name] - b[name]) ** 2).sum()) for name in a) < 1e-4 * moved
    for name, value in whole.curve[0].items():
        assert parts.curve[0][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_samples_depend_on_seed_prompt_and_step_alone(model: Path, tmp_path: Path) -> None:
    def drawn(name: str, **changed: Any) -> dict[str, list[str]]:
        seen: dict[str, list[str]] = {}

        def score(exchanges: Sequence[Exchange]) -> list[float]:
            for exchange in exchanges:
                seen[exchange.id] = [exchange.response]
            return LetterE().score(exchanges)

        train(tmp_path / name, model, reward=SimpleNamespace(score=score), learning_rate=0, steps=2, **changed)
        return seen

    first = drawn("a")
    assert first == drawn("b", minibatches=4, beta=0.5, epochs=2)
    assert len(first) == 24
    other = drawn("c", seed=12)
    assert all(first[name] != other[name] for name in first.keys() & other.keys())
    backwards = drawn("d", prompts=PROMPTS[::-1])
    common = first.keys() & backwards.keys()
    assert common
    assert all(first[name] == backwards[name] for name in common)


def test_a_prompt_twice_in_a_batch_is_sampled_anew(model: Path, tmp_path: Path) -> None:
    algorithm = make_ppo(ppo(prompts_per_step=2, samples_per_prompt=2), Context(tmp_path / "w"))
    requests = algorithm._requests([PROMPTS[0], PROMPTS[0]], 3)
    assert len({request.seed for request in requests}) == 4
    assert len({request.id for request in requests}) == 4


def test_adaptive_control_moves_beta_and_fixed_does_not(model: Path, tmp_path: Path) -> None:
    fixed = train(tmp_path / "f", model, beta=0.1)
    assert {row["beta"] for row in fixed.curve} == {0.1}
    adaptive = train(tmp_path / "a", model, beta=0.1, kl_control="adaptive", kl_target=1.0, kl_gain=0.5)
    betas = [row["beta"] for row in adaptive.curve] + [adaptive.metrics["beta_last"]]
    for row, beta, following in zip(adaptive.curve, betas, betas[1:], strict=False):
        error = min(max(row["kl"] - 1.0, -0.2), 0.2)
        assert following == pytest.approx(beta * (1 + 0.5 * error))
    assert len(set(betas)) == 5


def test_a_high_beta_holds_the_policy_back(model: Path, tmp_path: Path) -> None:
    free, held = (
        [row["kl"] for row in train(tmp_path / f"{beta}", model, steps=24, beta=beta).curve] for beta in (0.0, 1.0)
    )
    assert sum(held[12:]) < 0.5 * sum(free[12:])


def test_a_price_on_answers_without_an_end_makes_them_end(model: Path, tmp_path: Path) -> None:
    common = {"steps": 30, "max_new_tokens": 6, "learning_rate": 1e-2, "max_empty": 1.0, "samples_per_prompt": 8}
    free = train(tmp_path / "f", model, **common)
    priced = train(tmp_path / "p", model, missing_end_penalty=1.0, **common)
    assert free.curve[0]["missing_end"] > 0.9
    assert free.curve[-1]["missing_end"] > priced.curve[-1]["missing_end"] + 0.3
    assert any("did not end" in note for note in free.notes)


def test_a_separate_critic_begins_as_the_preference_model(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(3)
    judge = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).eval()
    judge.save_pretrained(tmp_path / "pm")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "pm")
    own = learner(model, tmp_path, critic="separate", critic_model=tmp_path / "pm")
    seen = own.measure([([5, 6, 7], [8, 9, 10])])
    with torch.no_grad():
        states = judge.model(torch.tensor([[5, 6, 7, 8, 9, 10]])).last_hidden_state
        wanted = judge.score(states)[0, 2:5, 0]
    assert wanted.abs().max() > 1e-3
    assert torch.allclose(seen.values[0], wanted, atol=1e-5)
    zero = learner(model, tmp_path, critic="separate")
    assert (zero.measure([([5, 6, 7], [8, 9, 10])]).values == 0).all(), "a causal model has no score to go on from"


def test_the_curve_shows_what_goes_wrong_early(model: Path, tmp_path: Path) -> None:
    result = train(tmp_path, model, epochs=2)
    wanted = {
        "step", "reward", "reward_std", "reward_min", "reward_q10", "reward_median", "reward_q90", "reward_max", "kl",
        "kl_k3", "beta", "entropy", "length", "missing_end", "empty", "explained_variance", "policy_loss",
        "value_loss", "ratio", "ratio_max", "clip_fraction", "policy_kl", "learning_rate", "grad_norm", "refusal",
        "repetition", "boilerplate",
    }  # fmt: skip
    for row in result.curve:
        assert row.keys() == wanted
        assert row["reward_min"] <= row["reward_q10"] <= row["reward_median"] <= row["reward_q90"] <= row["reward_max"]
        assert 0 < row["entropy"] <= math.log(404)
        assert row["ratio_max"] > 1
    assert {f"seconds_{name}" for name in ("rollout", "score", "forward", "update")} <= result.metrics.keys()
    assert any(note.startswith("time: ") for note in result.notes)


# what it refuses, and when it stops ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "where", "words"),
    [
        ({"minibatches": 5}, "rl.minibatches", "does not divide"),
        ({"micro_batch": 4}, "rl.micro_batch", "does not divide"),
        ({"critic_model": "somewhere"}, "rl.critic_model", "head on the policy"),
    ],
)
def test_options_that_do_not_fit_each_other(tmp_path: Path, options: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        make_ppo(ppo(**options), Context(tmp_path / "w"))
    assert raised.value.where == where
    assert raised.value.hint


def test_prompts_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    long = Prompt("long", turns("How do I bake bread? " * 200))
    with pytest.raises(UserError, match="no prompt fits: the model has 512 positions") as raised:
        train(tmp_path / "a", model, prompts=[long])
    assert raised.value.where == "rl.max_new_tokens"
    few = train(tmp_path / "b", model, prompts=[*PROMPTS[:2], long], steps=1)
    assert "2 prompts for prompts_per_step 3: batches repeat them" in few.notes
    result = train(tmp_path / "c", model, prompts=[*PROMPTS[:3], long], steps=1)
    assert "1 of 4 prompts left out: too long for the model" in result.notes


def test_a_policy_without_end_of_text(model: Path, tmp_path: Path) -> None:
    endless = tmp_path / "m"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(endless)
    AutoTokenizer.from_pretrained(model).save_pretrained(endless)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = json.loads((endless / name).read_text())
        (endless / name).write_text(json.dumps({k: v for k, v in content.items() if not k.startswith("eos_token")}))
    with pytest.raises(UserError, match="no end-of-text token") as raised:
        train(tmp_path, endless)
    assert str(endless) in raised.value.where
    assert "eos_token" in raised.value.hint


def test_a_critic_with_another_tokenizer(model: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", vocab_texts=["Entirely different words are in here, and so are the merges."])
    with pytest.raises(UserError, match="another tokenizer") as raised:
        train(tmp_path, model, critic="separate", critic_model=other)
    assert raised.value.where == "rl.critic_model"


def fail(call: int, texts: Sequence[str]) -> list[float]:
    raise RuntimeError("no memory left on the judge")


@pytest.mark.parametrize(
    ("scores", "kind", "words"),
    [
        (lambda call, texts: [math.nan] * len(texts), CAIError, "must be finite"),
        (lambda call, texts: [1.0] * len(texts), UserError, "the reward is 1.0 for all 12 first answers"),
        (lambda call, texts: letters(call, texts)[1:], CAIError, "gave 11 scores for 12 answers"),
        (fail, CAIError, "failed on 12 answers: RuntimeError: no memory left"),
    ],
    ids=["nan", "constant", "too few", "raises"],
)
def test_a_reward_that_cannot_be_learnt_from_is_found_in_the_first_batch(
    model: Path, tmp_path: Path, scores: Any, kind: type[CAIError], words: str
) -> None:
    reward = Script(scores)
    with pytest.raises(kind, match=words) as raised:
        train(tmp_path, model, reward=reward)
    assert raised.value.hint or "gave 11" in words
    assert reward.calls == 1
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "w").rglob("checkpoint-*"))


def test_a_reward_that_breaks_later_keeps_what_was_learnt(model: Path, tmp_path: Path) -> None:
    whole = train(tmp_path / "a", model, save_steps=1)
    broken = Script(lambda call, texts: letters(call, texts) if call < 3 else [math.inf] * len(texts))
    with pytest.raises(CAIError, match="must be finite"):
        train(tmp_path / "b", model, save_steps=1, reward=broken)
    again = train(tmp_path / "b", model, save_steps=1)
    assert same(tmp_path / "a" / "out", tmp_path / "b" / "out")
    assert again.curve == whole.curve


def test_constant_rewards_later_on_are_counted(model: Path, tmp_path: Path) -> None:
    reward = Script(lambda call, texts: letters(call, texts) if call < 3 else [0.5] * len(texts))
    result = train(tmp_path, model, reward=reward)
    assert any("in 2 of 4 batches all samples had the same reward" in note for note in result.notes)


def test_a_loss_that_is_not_finite_stops_it_and_the_last_checkpoint_stays(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cai_plugins.rl import ppo as module

    honest, calls = module.policy_loss, []

    def poisoned(*given: Any) -> Any:
        calls.append(1)
        return honest(*given) * (math.nan if len(calls) > 4 else 1)  # two minibatches a step: in the third

    monkeypatch.setattr(module, "policy_loss", poisoned)
    with pytest.raises(CAIError, match="training stopped at step 3: the loss is nan"):
        train(tmp_path, model, save_steps=1)
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in (tmp_path / "w").rglob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    monkeypatch.setattr(module, "policy_loss", honest)
    train(tmp_path, model, save_steps=1)
    train(tmp_path / "whole", model)
    assert same(tmp_path / "out", tmp_path / "whole" / "out")


def test_an_exploding_kl_ends_with_the_last_policy_that_was_in_order(model: Path, tmp_path: Path) -> None:
    """The policy after step k is first seen at step k + 1."""
    common = {"steps": 8, "learning_rate": 2e-2, "save_steps": 1}
    free = train(tmp_path / "free", model, max_kl=None, **common)
    kls = [row["kl"] for row in free.curve]
    at = next(i for i, kl in enumerate(kls) if i >= 2 and kl > max(kls[:i]))
    limit = (max(kls[:at]) + kls[at]) / 2
    result = train(tmp_path / "held", model, max_kl=limit, **common)
    assert result.metrics["stopped"] == at + 1
    assert result.metrics["steps"] == at - 1
    assert any(f"stopped at step {at + 1} of 8" in note and "max_kl" in note for note in result.notes)
    assert [row["kl"] for row in result.curve] == kls[: at + 1]
    assert "policy_loss" not in result.curve[-1]
    # What came out is the policy of that step, which another run gives that is no longer than it; the rate is constant.
    train(tmp_path / "short", model, max_kl=None, **{**common, "steps": at - 1})
    assert same(tmp_path / "held" / "out", tmp_path / "short" / "out")
    with pytest.raises(CAIError, match="no earlier checkpoint is known to be good"):
        train(tmp_path / "none", model, max_kl=limit, **{**common, "save_steps": 100})
    # What the error advises helps: the checkpoint that was not good is not taken up again.
    with pytest.raises(CAIError, match="no earlier checkpoint is known to be good"):
        train(tmp_path / "again", model, max_kl=limit, **{**common, "save_steps": at})
    train(tmp_path / "again", model, max_kl=limit, **common)
    assert same(tmp_path / "again" / "out", tmp_path / "held" / "out")


def test_answers_that_become_empty_end_it(model: Path, tmp_path: Path) -> None:
    """A reward for saying nothing: the policy learns to end at once. Fewer samples seldom hold such an end at first."""
    reward = Script(lambda call, texts: [-float(len(text)) for text in texts])
    options = {"steps": 60, "learning_rate": 5e-3, "max_new_tokens": 4, "save_steps": 1, "max_kl": None}
    options["samples_per_prompt"] = 32
    result = train(tmp_path, model, reward=reward, max_empty=0.5, **options)
    assert result.curve[-1]["empty"] >= 0.5
    assert result.metrics["steps"] == result.metrics["stopped"] - 2
    assert any("of the answers are empty" in note for note in result.notes)
    with pytest.raises(UserError, match="first 96 answers are empty"):
        train(tmp_path / "b", tmp_path / "out", reward=reward, max_empty=0.01, **options)


# restarts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"save_steps": 2, "schedule": "cosine", "kl_control": "adaptive", "epochs": 2},
        {"save_steps": 1, "lora": {"rank": 2}, "critic": "separate"},
    ],
    ids=["all weights", "lora, separate"],
)
def test_stopped_anywhere_it_ends_with_the_same_weights_and_curve(
    model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = train(tmp_path / "whole", model, **options)
    for at in range(1, 5):
        with pytest.raises(Interrupted):
            train(tmp_path / str(at), model, stop_at=at, **options)
        again = train(tmp_path / str(at), model, **options)
        assert same(tmp_path / "whole" / "out", tmp_path / str(at) / "out"), at
        assert again.curve == whole.curve


def test_another_configuration_takes_up_no_checkpoint(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "a", model, stop_at=3, save_steps=1)
    changes: list[dict[str, Any]] = [{"beta": 0.01}, {"seed": 12}, {"prompts": PROMPTS[:5]}, {"steps": 5}]
    for i, changed in enumerate(changes):
        train(tmp_path / "a", model, save_steps=1, out=f"a{i}", **changed)
        train(tmp_path / f"fresh{i}", model, save_steps=1, **changed)
        assert same(tmp_path / "a" / f"a{i}", tmp_path / f"fresh{i}" / "out"), changed
    context = Context(tmp_path / "a" / "w")
    make_ppo(ppo(save_steps=2), context).train(model, PROMPTS, LetterE(), tmp_path / "b")
    assert context.progress.seen[0] == (1, 4), "trouble leads back to a checkpoint"


def test_a_torn_checkpoint_does_not_count(model: Path, tmp_path: Path) -> None:
    train(tmp_path / "a", model, save_steps=1)
    with pytest.raises(Interrupted):
        train(tmp_path / "b", model, stop_at=3, save_steps=1)
    (torn,) = (tmp_path / "b" / "w").glob("*/checkpoint-3/policy.safetensors")
    torn.write_bytes(torn.read_bytes()[:-7])
    context = Context(tmp_path / "b" / "w")
    make_ppo(ppo(save_steps=1), context).train(model, PROMPTS, LetterE(), tmp_path / "b" / "out")
    assert context.progress.seen[0] == (3, 4), "it went on after step 2"
    assert same(tmp_path / "a" / "out", tmp_path / "b" / "out")


def test_checkpoints_hold_no_pickle(model: Path, tmp_path: Path) -> None:
    train(tmp_path, model, save_steps=1, lora={"rank": 2})
    names = {path.name for path in (tmp_path / "w").rglob("*") if path.is_file()}
    parts = {f"{part}{what}.safetensors" for part in ("policy", "critic") for what in ("", ".optimizer")}
    assert names == parts | {"state.json", "whole.json"}
