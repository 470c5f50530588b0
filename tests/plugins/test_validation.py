"""Looks on the way: what they see, that they change nothing, what is chosen by them, that a restart sees as much."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import Interrupted, same, turns, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from cai_core.errors import CAIError, UserError
from cai_core.testing import TestContext
from cai_core.testing.rl import LetterE
from cai_core.testing.tiny import tiny_model
from cai_core.types.backend import Sampling
from cai_core.types.prompts import Prompt
from cai_core.types.reward import Exchange, NoReward, Preference
from cai_core.types.rl import snapshot_folder
from cai_core.types.trainer import TrainResult
from cai_plugins._torch.seeding import derived
from cai_plugins.rl.live import Live
from cai_plugins.rl.plugin import (
    DPOOptions,
    GRPOOptions,
    PPOOptions,
    RLOOOptions,
    ValidationOptions,
    make_dpo,
    make_grpo,
    make_ppo,
    make_rloo,
)
from cai_plugins.rl.texts import boilerplate, text_rates
from cai_plugins.rl.validation import Validation, set_aside

PROMPTS = [Prompt(f"p{i}", turns(f"How do I bake {'very ' * (i % 3)}good bread {i}?")) for i in range(10)]
KINDS = ("ppo", "grpo", "rloo", "dpo")


def usually(*kinds: str) -> list[Any]:
    """All of ``KINDS``; the others in the slow tier."""
    return [kind if kind in kinds else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


EVERY = {"every": 2, "prompts": 2, "samples": 2, "patience": None}


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai_plugins.rl.dpo.ANSWER", 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny")


class Script:
    """A reward that is a function of the answers; ``calls`` counts them."""

    def __init__(self, of: Callable[[int, str], float]) -> None:
        self.of = of
        self.calls = 0

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        self.calls += 1
        return [self.of(self.calls, exchange.response) for exchange in exchanges]


def share(text: str) -> float:
    return text.count("e") / max(1, len(text))


def turning(best: int) -> Script:
    """Likes each look more than the last up to look number ``best`` (from 1), and then less and less."""
    return Script(lambda call, text: -abs(call - best) + 0.001 * share(text))


def labels() -> list[Preference]:
    return [
        Preference(f"c{i}", turns(f"How do I bake {i % 12} breads?"), "e" * (3 + i % 4), "No way.", 0.9)
        for i in range(24)
    ]


def train(
    kind: str,
    folder: Path,
    model: Path,
    *,
    heldout: Any = None,
    reward: Any = None,
    stop_at: int | None = None,
    validation: dict[str, Any] | None = EVERY,
    **changed: Any,
) -> TrainResult:
    context = TestContext(folder / "w", stop_at=stop_at, labels=labels(), heldout=heldout)
    watched = None if validation is None else ValidationOptions(**validation)
    if kind == "dpo":
        dpo = {"learning_rate": 1e-2, "batch_size": 4, "save_steps": 1, "epochs": 2, "lora": None, **changed}
        dpo.pop("steps", None)
        return make_dpo(DPOOptions(validation=watched, **dpo), context).train(model, [], NoReward(), folder / "out")
    common = {"steps": 6, "prompts_per_step": 2, "samples_per_prompt": 4, "max_new_tokens": 6, "lora": None}
    common |= {"learning_rate": 5e-3, "save_steps": 100, **changed}
    algorithm: Any
    if kind == "ppo":
        algorithm = make_ppo(PPOOptions(validation=watched, **common), context)
    elif kind == "grpo":
        algorithm = make_grpo(GRPOOptions(validation=watched, **common), context)
    else:
        algorithm = make_rloo(RLOOOptions(validation=watched, **common), context)
    return algorithm.train(model, PROMPTS, reward or LetterE(), folder / "out")


def steps(result: TrainResult) -> list[float]:
    return [row["step"] for row in result.extra["validation"]["rows"]]


@pytest.mark.parametrize("kind", usually("ppo", "dpo"))
def test_a_look_sees_both_rewards_the_kl_and_the_texts(kind: str, model: Path, tmp_path: Path) -> None:
    """Of answers that the policy at that step gives: at step 0 it is the reference, and later it is not."""
    result = train(kind, tmp_path, model, heldout=Script(lambda call, text: float(len(text))))
    found = result.extra["validation"]
    last = result.metrics["steps"]
    assert steps(result) == [step for step in range(0, int(last) + 1) if step % 2 == 0 or step == last]
    wanted = {"step", "heldout_reward", "heldout_reward_std", "kl", "length", "missing_end", "empty"}
    wanted |= {"refusal", "repetition", "boilerplate"} | ({"reward", "reward_std"} if kind != "dpo" else set())
    assert all(row.keys() == wanted for row in found["rows"])
    assert found["rows"][0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(found["rows"][-1]["kl"]) > 1e-3
    assert (found["prompts"], found["answers"]) == (2, 4)
    assert result.metrics["validation_looks"] == len(found["rows"])
    assert found["why"] in result.notes
    assert any("for validation and are not learnt from" in note for note in result.notes)


@pytest.mark.parametrize("kind", usually("ppo", "grpo"))
def test_the_result_is_the_best_look_and_not_the_last(kind: str, model: Path, tmp_path: Path) -> None:
    """The weights are those of a training that ended there."""
    result = train(kind, tmp_path / "a", model, heldout=turning(2), steps=6)
    assert result.extra["validation"]["best"] == result.metrics["validation_best"] == 2
    assert "the policy after step 2" in result.notes[0]
    if kind == "dpo":  # its length is that of the pairs: the checkpoint of that step says the same
        (kept,) = (tmp_path / "a" / "w").glob("dpo-*/checkpoint-2")
        assert same(kept, tmp_path / "a" / "out")
    else:
        train(kind, tmp_path / "b", model, steps=2)
        assert same(tmp_path / "a" / "out", tmp_path / "b" / "out")
    train(kind, tmp_path / "c", model, steps=6)
    assert not same(tmp_path / "a" / "out", tmp_path / "c" / "out"), "nothing chooses without a held-out reward"


@pytest.mark.parametrize("kind", usually("grpo"))
def test_with_adapters_too(kind: str, model: Path, tmp_path: Path) -> None:
    adapters = {"lora": {"rank": 2}, "learning_rate": 2e-2}
    result = train(kind, tmp_path / "a", model, heldout=turning(2), **adapters)
    assert result.extra["validation"]["best"] == 2
    train(kind, tmp_path / "b", model, **adapters)
    assert not same(tmp_path / "a" / "out", tmp_path / "b" / "out")
    assert not same(model, tmp_path / "a" / "out")


@pytest.mark.parametrize("kind", usually("ppo"))
def test_a_policy_that_only_got_worse_is_given_back(kind: str, model: Path, tmp_path: Path) -> None:
    for i, lora in enumerate((None, {"rank": 2})):
        result = train(kind, tmp_path / str(i), model, heldout=turning(1), lora=lora)
        assert result.extra["validation"]["best"] == 0
        assert "the policy as given" in result.notes[0]
        assert same(model, tmp_path / str(i) / "out")


@pytest.mark.parametrize("kind", usually("ppo", "dpo"))
def test_patience_ends_training(kind: str, model: Path, tmp_path: Path) -> None:
    result = train(kind, tmp_path, model, heldout=turning(2), validation={**EVERY, "every": 1, "patience": 2}, steps=6)
    found = result.extra["validation"]
    assert steps(result) == [0, 1, 2, 3]
    assert (found["best"], found["stopped"]) == (1, 3)
    assert result.metrics["steps"] == 3
    assert "training stopped at step 3" in found["why"]


@pytest.mark.parametrize("kind", usually("grpo", "dpo"))
@pytest.mark.parametrize(
    "lora", [None, pytest.param({"rank": 2}, marks=pytest.mark.slow)], ids=["all weights", "adapters"]
)
def test_a_snapshot_of_the_step_at_which_patience_ends_training(
    kind: str, lora: Any, model: Path, tmp_path: Path
) -> None:
    """It is the policy of that step, as in a training that goes on, and not the earlier one that is the result."""
    looks = {**EVERY, "every": 1, "patience": 2}
    ended = train(kind, tmp_path / "a", model, heldout=turning(2), validation=looks, lora=lora, snapshots=(2, 3))
    assert ended.metrics["steps"] == 3
    assert not any("snapshot" in note for note in ended.notes)
    train(kind, tmp_path / "b", model, validation=looks, lora=lora, snapshots=(2, 3))
    for step in (2, 3):
        assert same(tmp_path / "a" / snapshot_folder(step), tmp_path / "b" / snapshot_folder(step)), step
    assert not same(tmp_path / "a" / snapshot_folder(3), tmp_path / "a" / "out")


def test_a_best_policy_that_the_disk_has_lost(model: Path, tmp_path: Path) -> None:
    """It says so, rather than give another one."""

    class Loses(Script):
        def score(self, exchanges: Sequence[Exchange]) -> list[float]:
            if self.calls == 3:
                (torn,) = tmp_path.rglob("checkpoint-2/*policy.safetensors")
                torn.unlink()
            return super().score(exchanges)

    with pytest.raises(CAIError, match="the checkpoint of the best look, step 2, is damaged or gone") as raised:
        train("ppo", tmp_path, model, heldout=Loses(turning(2).of))
    assert raised.value.hint
    assert not (tmp_path / "out").exists()


def test_over_optimisation_is_called_by_its_name(model: Path, tmp_path: Path) -> None:
    rising = Script(lambda call, text: call + 0.001 * share(text))
    result = train("ppo", tmp_path, model, heldout=turning(2), reward=rising)
    assert result.notes[0].endswith("over-optimisation")
    assert "chance" not in result.notes[0]
    again = Script(lambda call, text: call + 0.001 * share(text))
    result = train("ppo", tmp_path / "b", model, heldout=turning(99), reward=again)
    assert "over-optimisation" not in result.notes[0]
    noisy = Script(lambda call, text: -abs(call - 2) + 100 * (sum(map(ord, text)) % 2))
    again = Script(lambda call, text: call + 0.001 * share(text))
    many = {**EVERY, "samples": 8}
    result = train("ppo", tmp_path / "c", model, heldout=noisy, reward=again, learning_rate=1e-9, validation=many)
    assert result.notes[0].endswith("over-optimisation, or chance")
    assert "at the start, which may be chance" in result.notes[0]


@pytest.mark.parametrize("kind", usually("grpo"))
def test_looks_change_nothing_that_is_learnt(kind: str, model: Path, tmp_path: Path) -> None:
    often = train(kind, tmp_path / "a", model, validation={**EVERY, "every": 1})
    seldom = train(kind, tmp_path / "b", model, validation={**EVERY, "every": 100})
    assert same(tmp_path / "a" / "out", tmp_path / "b" / "out")
    assert often.curve == seldom.curve
    assert len(steps(often)) > len(steps(seldom)) == 2


@pytest.mark.parametrize("kind", usually("ppo", "rloo"))
def test_a_restart_sees_the_same(kind: str, model: Path, tmp_path: Path) -> None:
    """Killed anywhere, also between a look and the next checkpoint, and after the best was passed."""

    def likes() -> Script:
        # By the answers alone, since a restart counts its calls anew.
        return Script(lambda call, text: -abs(share(text) - 0.06))

    whole = train(kind, tmp_path / "whole", model, heldout=likes(), save_steps=2)
    for at in (3, 5):
        with pytest.raises(Interrupted):
            train(kind, tmp_path / str(at), model, heldout=likes(), save_steps=2, stop_at=at)
        again = train(kind, tmp_path / str(at), model, heldout=likes(), save_steps=2)
        assert again.extra == whole.extra
        assert again.curve == whole.curve
        assert same(tmp_path / "whole" / "out", tmp_path / str(at) / "out"), at


def test_looks_fall_between_batches_of_samples(model: Path, tmp_path: Path) -> None:
    """A checkpoint within one could not be gone on from exactly."""
    result = train("grpo", tmp_path, model, updates_per_batch=3, validation={**EVERY, "every": 2}, heldout=turning(2))
    assert steps(result) == [0, 3, 6]


def test_a_held_out_reward_alone_is_enough(model: Path, tmp_path: Path) -> None:
    result = train("ppo", tmp_path, model, heldout=turning(1), validation=None)
    assert steps(result) == [0, 6]
    assert "validation" not in train("ppo", tmp_path / "b", model, validation=None).extra


@pytest.mark.parametrize("kind", usually("ppo", "dpo"))
def test_a_held_out_reward_that_says_nothing_stops_before_training(kind: str, model: Path, tmp_path: Path) -> None:
    many = {**EVERY, "samples": 8}
    for error, score, words in (
        (UserError, 0.5, "for all 16 first answers"),
        (CAIError, math.nan, "must be finite"),
    ):
        heldout = SimpleNamespace(score=lambda exchanges, score=score: [score] * len(exchanges))
        with pytest.raises(error, match=words) as raised:
            train(kind, tmp_path / str(score), model, heldout=heldout, validation=many)
        assert raised.value.where == "heldout_reward"
        assert not list(tmp_path.rglob("checkpoint-*"))


def test_a_policy_astray_is_not_chosen(model: Path, tmp_path: Path) -> None:
    """However much the held-out reward likes it."""
    limits = {"learning_rate": 3e-2, "steps": 8, "validation": {**EVERY, "every": 1}}
    free = train("ppo", tmp_path / "a", model, heldout=turning(99), max_kl=None, **limits)
    kls = [row["kl"] for row in free.extra["validation"]["rows"]]
    assert free.extra["validation"]["best"] == 8
    limit = max(kls[1], 0) + 0.01
    held = train("ppo", tmp_path / "b", model, heldout=turning(99), max_kl=limit, **limits)
    found = held.extra["validation"]
    assert held.metrics["stopped"]
    assert found["best"] == max(int(row["step"]) for row in found["rows"] if row["kl"] <= limit)
    assert any("max_kl" in note for note in held.notes)


def name(item: tuple[Prompt, list[int]]) -> str:
    return item[0].id


@given(st.integers(2, 60), st.integers(1, 40), st.integers(0, 9))
def test_what_is_looked_at_is_not_learnt_from(count: int, wanted: int, seed: int) -> None:
    items = [(Prompt(f"p{i}", turns(str(i))), [i]) for i in range(count)]
    kept, aside = set_aside(items, ValidationOptions(prompts=wanted), seed, name)
    assert sorted(ids for _, ids in kept + aside) == [[i] for i in range(count)]
    assert kept == [item for item in items if item in kept]
    assert len(aside) == max(1, min(wanted, count // 5))
    ranked = sorted(items, key=lambda item: derived(seed, "aside", item[0].id))
    assert aside == [item for item in items if item in ranked[: len(aside)]]


@given(st.lists(st.integers(0, 30), min_size=2), st.integers(1, 40), st.integers(0, 9))
def test_equal_prompts_are_on_one_side(texts: list[int], wanted: int, seed: int) -> None:
    items = [(Prompt(f"p{i}", turns(str(text))), [text]) for i, text in enumerate(texts)]
    if len(set(texts)) == 1:
        with pytest.raises(UserError, match=f"there are 1, {len(texts)} times"):
            set_aside(items, ValidationOptions(prompts=wanted), seed, name)
        return
    kept, aside = set_aside(items, ValidationOptions(prompts=wanted), seed, name)
    assert sorted(kept + aside, key=name) == sorted(items, key=name)
    assert kept
    assert not {text for _, (text,) in kept} & {text for _, (text,) in aside}
    least = min(Counter(texts).values())
    assert 1 <= len(aside) <= max(least, min(wanted, len(items) // 5))


def test_nothing_to_set_aside(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are 1") as raised:
        set_aside([(PROMPTS[0], [1])], ValidationOptions(), 0, name)
    assert raised.value.where == "rl.validation"
    assert raised.value.hint


def test_the_kl_is_that_of_a_plain_forward_pass(model: Path, tmp_path: Path) -> None:
    """Whatever stands beside an answer, at a temperature, against the weights in the folder."""
    moved = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        for value in moved.parameters():
            value.mul_(1.05)
    tokenizer = AutoTokenizer.from_pretrained(model)
    samples = [([5, 6, 7], [8, 9, 10, 11]), ([5] * 20, [12]), ([9], [3, 2])]
    found = Live(moved, model, tokenizer, TestContext(tmp_path), 0.7, 2).kl(samples)
    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    for (prompt, answer), value in zip(samples, found, strict=True):
        sums = []
        for one in (moved, reference):
            with torch.no_grad():
                logits = one(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / 0.7
            sums.append(float(logits.log_softmax(-1)[range(len(answer)), answer].sum()))
        assert value == pytest.approx(sums[0] - sums[1], abs=1e-4)
        assert abs(value) > 1e-3


def test_harmful_and_harmless_prompts_are_told_apart(model: Path, tmp_path: Path) -> None:
    """Over prompts, not over answers; and not at all where there is one kind."""
    lengths: dict[str, float] = {}

    class Kept:
        def score(self, exchanges: Sequence[Exchange]) -> list[float]:
            lengths.update({exchange.id: float(len(exchange.response)) for exchange in exchanges})
            return [lengths[exchange.id] for exchange in exchanges]

    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model).eval()
    context = TestContext(tmp_path)
    live = Live(policy, model, tokenizer, context, 1.0, 4)
    prompts = [replace(prompt, kind="helpful" if i % 3 else "red_team") for i, prompt in enumerate(PROMPTS[:5])]
    for some, kinds in ((prompts, {"red_team": 2, "helpful": 3}), (prompts[:1], {"red_team": 1})):
        asked = [(prompt, [5, 6, 7]) for prompt in some]
        looks = Validation(ValidationOptions(samples=2), context, live, asked, Sampling(6), Kept())
        row = looks.look(0)
        assert looks.report(1)["kinds"] == kinds
        for kind in ("red_team", "helpful"):
            means = [
                (lengths[f"{p.id}/validation/0"] + lengths[f"{p.id}/validation/1"]) / 2 for p in some if p.kind == kind
            ]
            if len(kinds) > 1:
                assert row[f"reward_{kind}"] == pytest.approx(statistics.fmean(means))
                assert row[f"reward_{kind}_std"] == pytest.approx(statistics.pstdev(means))
            else:
                assert f"reward_{kind}" not in row


def test_text_rates() -> None:
    kind = "I am here to listen whenever you want to talk about it"
    texts = [(f"p{i}", f"{kind}. {word} is another matter.") for i, word in enumerate(("Rice", "Bread", "Corn"))]
    assert boilerplate(texts) == [pytest.approx(12 / 16)] * 3
    assert boilerplate(texts[:2]) == [0.0] * 2, "two are no habit"
    assert boilerplate([("same", kind)] * 9) == [0.0] * 9, "samples of one prompt may resemble each other"
    assert boilerplate([("a", kind), ("b", kind), ("c", "")]) == [0.0] * 3
    rates = text_rates([("a", "I can't help with that."), ("b", "flour " * 6), ("c", "Of course: take flour.")])
    assert rates == {"refusal": pytest.approx(1 / 3), "repetition": pytest.approx(1 / 3), "boilerplate": 0.0}


def test_the_training_curve_has_them(model: Path, tmp_path: Path) -> None:
    for kind in ("ppo", "grpo", "rloo"):
        result = train(kind, tmp_path / kind, model, steps=2, validation=None)
        assert all({"refusal", "repetition", "boilerplate"} <= row.keys() for row in result.curve)
    assert weights(model)


@pytest.mark.parametrize("kind", usually("grpo"))
def test_a_policy_that_is_no_numbers_any_more(kind: str, model: Path, tmp_path: Path) -> None:
    """The first step leaves weights that overflow; the look after it says so, and nothing is kept of the step."""
    looks = {"every": 1, "prompts": 2, "samples": 2}
    for rate in (1e6, 1e18):
        folder = tmp_path / str(rate)
        with pytest.raises(CAIError, match=r"not numbers|is -?(nan|inf)") as raised:
            train(kind, folder, model, heldout=turning(1), validation=looks, learning_rate=rate, save_steps=1)
        assert "learning_rate" in raised.value.hint
        assert not (folder / "out").exists()


def test_a_kl_that_is_no_number_is_no_look(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Live, "kl", lambda self, samples: [math.nan] * len(samples))
    with pytest.raises(CAIError, match=r"the KL of the policy .* is nan"):
        train("dpo", tmp_path, model, heldout=turning(1))
