"""What no RL algorithm can learn from is an error before it learns, with the option or file and what to do."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training import Context, turns
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, RLOOConfig

from cai_core.errors import CAIError, UserError
from cai_core.testing.rl import LetterE, Letters
from cai_core.testing.tiny import tiny_model
from cai_core.types.backend import Completion, GenerateRequest
from cai_core.types.labeler import Comparison, Label
from cai_core.types.prompts import Prompt
from cai_core.types.reward import Exchange, NoReward, Preference
from cai_plugins._torch.loading import load_tokenizer
from cai_plugins.principles.samplers import Uniform
from cai_plugins.rewards.plugin import PreferenceOptions, make_preference
from cai_plugins.rl import plugin

PROMPTS = [Prompt(f"p{i}", turns(f"How do I bake {i} breads?")) for i in range(4)]
LONG = [Prompt(f"long{i}", turns(f"How do I bake {i} breads? " * 200)) for i in range(4)]
ONLINE = {"steps": 2, "prompts_per_step": 4, "max_new_tokens": 8, "lora": None}
GROUP = {"steps": 2, "prompts_per_step": 2, "samples_per_prompt": 8, "max_new_tokens": 8, "lora": None}
FROM_REWARD = ["ppo", "grpo", "rloo", "online_dpo", "best_of_n"]
ALL = [*FROM_REWARD, "dpo", "oaif"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer of its own."""
    words = ["Entirely different words are in here, and so are the merges."]
    return tiny_model(tmp_path_factory.mktemp("other") / "tiny", vocab_texts=words)


@pytest.fixture(scope="module")
def wrong(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows fewer tokens than the tokenizer beside it has."""
    folder = tmp_path_factory.mktemp("wrong")
    config = AutoConfig.from_pretrained(model)
    config.vocab_size = 300
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


class Backend:
    """Answers with what it was asked, numbered."""

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        for request in requests:
            yield Completion(request.id, f"answer {request.id}", "stop")

    def close(self) -> None:
        pass


def pairs(prompts: Sequence[Prompt]) -> list[Preference]:
    return [Preference(p.id, p.messages, "Mix flour.", "No.", 0.9) for p in prompts for _ in range(2)]


class Mute(Backend):
    """Gives no text in answer to the samples ``silent`` of a prompt."""

    def __init__(self, *silent: int) -> None:
        self.silent = silent

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            empty = int(completion.id.rpartition("/")[2]) in self.silent
            yield replace(completion, text=" ") if empty else completion


def train(
    kind: str, folder: Path, policy: Path, *, prompts: Sequence[Prompt] = PROMPTS, reward: Any = None, **changed: Any
) -> Any:
    labels, labeler = changed.pop("labels", pairs(prompts)), changed.pop("labeler", Letters())
    trainer = SimpleNamespace(train=lambda *given: pytest.fail("nothing may be trained"))
    asked = {"labeler": labeler, "principle_sampler": Uniform(1)}
    context = Context(folder / "w", policy=changed.pop("backend", Backend()), trainer=trainer, **asked)
    context.labels = labels
    made: dict[str, Callable[[], Any]] = {
        "ppo": lambda: plugin.make_ppo(plugin.PPOOptions(**{**GROUP, **changed}), context),
        "grpo": lambda: plugin.make_grpo(plugin.GRPOOptions(**{**GROUP, **changed}), context),
        "rloo": lambda: plugin.make_rloo(plugin.RLOOOptions(**{**GROUP, **changed}), context),
        "online_dpo": lambda: plugin.make_online_dpo(plugin.OnlineDPOOptions(**{**ONLINE, **changed}), context),
        "oaif": lambda: plugin.make_oaif(plugin.OnlineDPOOptions(**{**ONLINE, **changed}), context),
        "best_of_n": lambda: plugin.make_best_of_n(
            plugin.BestOfNOptions(**{"n": 4, "max_new_tokens": 8, **changed}), context
        ),
        "dpo": lambda: plugin.make_dpo(plugin.DPOOptions(**{"lora": None, "batch_size": 4, **changed}), context),
    }
    given = (reward or LetterE()) if kind in FROM_REWARD else NoReward()
    return made[kind]().train(policy, prompts, given, folder / "out")


def check(folder: Path, raised: pytest.ExceptionInfo[CAIError]) -> None:
    """It says where and what to do, and nothing was written."""
    assert raised.value.where
    assert raised.value.hint
    assert not (folder / "out").exists()
    assert not list(folder.rglob("checkpoint-*"))


@pytest.mark.parametrize("kind", ALL)
def test_a_policy_with_the_tokenizer_of_another_model(kind: str, wrong: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the tokenizer is another model's") as raised:
        train(kind, tmp_path, wrong)
    assert raised.value.where == str(wrong)
    check(tmp_path, raised)


def test_a_reward_model_with_the_tokenizer_of_another_model(wrong: Path, tmp_path: Path) -> None:
    """When it is fitted, and when it is loaded."""
    for i in range(2):
        reward = make_preference(PreferenceOptions(helpful="none"), Context(tmp_path / "w"))
        with pytest.raises(UserError, match="the tokenizer is another model's") as raised:
            reward.load(wrong) if i else reward.fit(wrong, pairs(PROMPTS), tmp_path / "out")
        assert raised.value.where == str(wrong)
        check(tmp_path, raised)


def test_a_reward_model_of_another_base_is_no_error(model: Path, other: Path, tmp_path: Path) -> None:
    """It reads text, with a tokenizer of its own."""
    reward = make_preference(PreferenceOptions(), Context(tmp_path / "r"))
    reward.load(other)
    assert load_tokenizer(other).get_vocab() != load_tokenizer(model).get_vocab()
    train("online_dpo", tmp_path, model, reward=reward)
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("kind", ALL)
def test_a_policy_without_end_of_text(kind: str, model: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless"
    shutil.copytree(model, endless)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (endless / name).is_file():
            content = json.loads((endless / name).read_text())
            (endless / name).write_text(json.dumps({k: v for k, v in content.items() if not k.startswith("eos_token")}))
    (endless / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="no end-of-text token") as raised:
        train(kind, tmp_path, endless)
    assert str(endless) in raised.value.where
    check(tmp_path, raised)


@pytest.mark.parametrize("kind", ALL)
def test_prompts_longer_than_the_context(kind: str, model: Path, tmp_path: Path) -> None:
    words = "last exchange alone is longer than 512" if kind == "dpo" else "no prompt fits: the model has 512"
    with pytest.raises(UserError, match=words) as raised:
        train(kind, tmp_path, model, prompts=LONG)
    check(tmp_path, raised)


@pytest.mark.parametrize(("most", "words"), [(256, "raise max_length"), (512, "a policy with a longer context")])
def test_pairs_longer_than_the_context(most: int, words: str, model: Path, tmp_path: Path) -> None:
    """What helps is named: another limit does not where the policy has no more positions."""
    with pytest.raises(UserError, match=f"alone is longer than {most}") as raised:
        train("dpo", tmp_path, model, prompts=LONG, max_length=most)
    assert raised.value.where == "rl.max_length"
    assert words in raised.value.hint
    check(tmp_path, raised)


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo", "online_dpo", "oaif", "best_of_n"])
def test_answers_longer_than_the_context(kind: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an answer may have 512 tokens") as raised:
        train(kind, tmp_path, model, max_new_tokens=512)
    assert raised.value.where == "rl.max_new_tokens"
    check(tmp_path, raised)


def scripted(score: Callable[[Exchange], float]) -> Any:
    return SimpleNamespace(score=lambda exchanges: [score(exchange) for exchange in exchanges])


@pytest.mark.parametrize("kind", FROM_REWARD)
@pytest.mark.parametrize(
    ("score", "words"),
    [(math.nan, "it must be finite"), (-math.inf, "it must be finite"), (0.25, r"the reward is 0\.25 for all")],
    ids=["nan", "inf", "constant"],
)
def test_rewards_that_say_nothing(kind: str, score: float, words: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(CAIError, match=words) as raised:
        train(kind, tmp_path, model, reward=scripted(lambda exchange: score))
    assert raised.value.where == "reward"
    check(tmp_path, raised)


def test_best_of_n_learns_no_silence(model: Path, tmp_path: Path) -> None:
    """Neither of a policy that says nothing, nor of a reward that likes nothing best."""
    quiet = scripted(lambda exchange: -float(len(exchange.response.strip())))
    for backend, words in (
        (Mute(0, 1, 2, 3), "100% of the policy's first 16 answers are empty"),
        (Mute(2), "the reward likes an empty answer best for 100% of the prompts"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            train("best_of_n", tmp_path / words[:5], model, reward=quiet, backend=backend)
        assert raised.value.where == "rl.max_empty"
        check(tmp_path / words[:5], raised)


def test_a_reward_that_forgets_an_answer(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CAIError, match="7 scores for 8 answers") as raised:
        train("online_dpo", tmp_path, model, reward=SimpleNamespace(score=lambda exchanges: [0.5] * 7))
    check(tmp_path, raised)


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (math.nan, r"p_a = nan for '.*'; it must lie in \[0, 1\]"),
        (1.5, "it must lie in"),
        (0.5, r"all 8 first labels are 0\.5"),
        (None, "the labeler gave no label for"),
    ],
)
def test_a_labeler_that_says_nothing(p: float | None, words: str, model: Path, tmp_path: Path) -> None:
    class Says(Letters):
        def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
            yield from (Label(c.id, p) for c in comparisons if p is not None)

    with pytest.raises(CAIError, match=words) as raised:
        train("oaif", tmp_path, model, labeler=Says(), prompts_per_step=8)
    assert raised.value.where == "label.labeler"
    check(tmp_path, raised)


@pytest.mark.parametrize(("p", "words"), [(math.nan, "p_a"), (0.5, "labels are 0.5")])
def test_labels_that_say_nothing(p: float, words: str, model: Path, tmp_path: Path) -> None:
    labels = [Preference(q.id, q.messages, "Mix flour.", "No.", p) for q in PROMPTS]
    with pytest.raises(UserError, match=words) as raised:
        train("dpo", tmp_path, model, labels=labels)
    check(tmp_path, raised)


@pytest.mark.parametrize(
    ("kind", "options", "where"),
    [
        ("ppo", {"minibatches": 5}, "rl.minibatches"),
        ("ppo", {"minibatches": 2, "micro_batch": 3}, "rl.micro_batch"),
        ("grpo", {"micro_batch": 5}, "rl.micro_batch"),
        ("rloo", {"micro_batch": 5}, "rl.micro_batch"),
        ("online_dpo", {"micro_batch": 3}, "rl.micro_batch"),
        ("oaif", {"micro_batch": 3}, "rl.micro_batch"),
        ("dpo", {"micro_batch": 3}, "rl.micro_batch"),
    ],
)
def test_sizes_that_do_not_divide(kind: str, options: dict[str, int], where: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not divide") as raised:
        train(kind, tmp_path, model, **options)
    assert raised.value.where == where
    check(tmp_path, raised)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_vllm_where_it_cannot_be(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, not installed, a version that TRL does not work with; and what TRL is told where it can be."""
    options = {"grpo": plugin.GRPOOptions, "rloo": plugin.RLOOOptions}[kind](vllm=True, vllm_memory=0.5)
    make = {"grpo": plugin.make_grpo, "rloo": plugin.make_rloo}[kind]
    context = Context(tmp_path / "w")
    with pytest.raises(UserError, match="this stage runs on the CPU") as raised:
        make(options, context)
    assert raised.value.where == "rl.vllm"
    check(tmp_path, raised)
    context.device = "cuda"
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(UserError, match="not installed") as raised:
            make(options, context)
        check(tmp_path, raised)
    monkeypatch.syspath_prepend(tmp_path)
    for version, fits in (("0.1.0", False), ("0.25.0", True)):
        (tmp_path / "vllm.py").write_text(f"__version__ = '{version}'", encoding="utf-8")
        monkeypatch.delitem(sys.modules, "vllm", raising=False)
        importlib.invalidate_caches()
        if fits:
            arguments = {"use_cpu": True, "bf16": False, **make(options, context).own}
            config = {"grpo": GRPOConfig, "rloo": RLOOConfig}[kind](str(tmp_path / "c"), **arguments)
            assert (config.use_vllm, config.vllm_mode, config.vllm_gpu_memory_utilization) == (True, "colocate", 0.5)
        else:
            with pytest.raises(UserError, match=r"versions from .* You have version 0\.1\.0") as raised:
                make(options, context)
            check(tmp_path, raised)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_fewer_prompts_than_a_batch_of_groups_has(kind: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompts_per_step is 5 and there are 4") as raised:
        train(kind, tmp_path, model, prompts_per_step=5)
    check(tmp_path, raised)


@pytest.mark.parametrize("kind", ALL)
def test_nothing_to_learn_from(kind: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        train(kind, tmp_path, model, prompts=[])
    check(tmp_path, raised)
