"""The preference model: parity with TRL, what the options do, what is counted, what others can load."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.stats import binomtest
from training import Context, Interrupted, same, turns, weights
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, pipeline
from trl import RewardConfig, RewardTrainer

from cai_core.errors import CAIError, UserError
from cai_core.testing.tiny import tiny_model
from cai_core.text.parts import opening
from cai_core.types.reward import Exchange, Preference
from cai_plugins._torch.chat import Chat
from cai_plugins._torch.loading import load_classifier, load_tokenizer
from cai_plugins._torch.losses import soft_bradley_terry
from cai_plugins.rewards.losses import preference_loss
from cai_plugins.rewards.measure import flat, measure
from cai_plugins.rewards.mixture import balanced, helpful_comparisons, split
from cai_plugins.rewards.plugin import PreferenceOptions, make_preference
from cai_plugins.rewards.preference import Collator, PreferenceTrainer, in_batches

GOOD, BAD = "Mix flour, water, salt and yeast.", "No way."
ALONE: dict[str, Any] = {"helpful": "none", "heldout": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("preference") / "tiny")


def pairs(p_good: float = 0.9, n: int = 12, source: str = "ai") -> list[Preference]:
    found = []
    for i in range(n):
        a, b, p = (GOOD, BAD, p_good) if i % 2 else (BAD, GOOD * (1 + i % 3), 1 - p_good)
        found.append(Preference(f"{source}{i}", turns(f"How do I bake bread {source} {i}?"), a, b, p, source))
    return found


# parity with TRL ---------------------------------------------------------------------------------------------------


class TestParityWithTRL:
    """TRL's own ``RewardTrainer`` on the same rows: with labels 0 and 1 there is no difference."""

    CHOSEN = (
        "Mix flour, water, salt and yeast.",
        "Of course: let it rise, then bake it.",
        "Yes",
        "Bake it until brown.",
    )
    REJECTED = ("No way.", "I can not help with that.", "What a lovely day it is. " * 3, "")

    def rows(self, chat: Chat) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """TRL's rows, and ours: in every other one the better answer is B and the label 0."""
        theirs, ours = [], []
        for i, (chosen, rejected) in enumerate(zip(self.CHOSEN, self.REJECTED, strict=True)):
            c, r = (chat.ids(turns("How do I bake bread?", text)) for text in (chosen, rejected))
            theirs.append({"chosen_ids": c, "rejected_ids": r})
            a, b, p = (r, c, 0.0) if i % 2 else (c, r, 1.0)
            ours.append({"a": a, "b": b, "p": p, "weight": 1.0})
        return theirs, ours

    def setup(self, model: Path, tmp_path: Path, centering: float, rate: float = 1e-3) -> tuple[Any, Any, Any, Any]:
        tokenizer = load_tokenizer(model)
        theirs, ours = self.rows(Chat(tokenizer, model))
        common: dict[str, Any] = {
            "learning_rate": rate,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 2,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "num_train_epochs": 3,
            "train_sampling_strategy": "sequential",
            "remove_unused_columns": False,
            "gradient_checkpointing": False,
            "bf16": False,
            "optim": "adamw_torch",
        }
        networks = []
        for _ in range(2):
            network, _ = load_classifier(model, "cpu")
            with torch.no_grad():
                generator = torch.Generator().manual_seed(3)
                network.score.weight.copy_(torch.randn(network.score.weight.shape, generator=generator))
            network.config.pad_token_id = tokenizer.pad_token_id
            # In float32 the order of the rows alone changes gradients by some 1e-6.
            networks.append(network.double())
        reference = RewardTrainer(
            model=networks[0],
            args=RewardConfig(
                str(tmp_path / "trl"),
                center_rewards_coefficient=centering or None,
                max_length=None,
                disable_dropout=False,
                **common,
            ),
            train_dataset=Dataset.from_list(theirs),
            processing_class=tokenizer,
        )
        trainer = PreferenceTrainer(
            model=networks[1],
            args=TrainingArguments(str(tmp_path / "ours"), **common),
            train_dataset=ours,
            data_collator=Collator(tokenizer.pad_token_id),
            centering=centering,
        )
        return reference, trainer, theirs, ours

    @pytest.mark.parametrize("centering", [0.0, 0.01])
    def test_loss_and_gradients_of_a_batch(self, model: Path, tmp_path: Path, centering: float) -> None:
        reference, trainer, theirs, ours = self.setup(model, tmp_path, centering)
        loss = reference.compute_loss(reference.model, reference.data_collator(theirs))
        mine = trainer.compute_loss(trainer.model, trainer.data_collator(ours), num_items_in_batch=len(ours))
        assert mine.item() == pytest.approx(loss.item(), abs=1e-6)
        loss.backward()
        mine.backward()
        left, right = dict(reference.model.named_parameters()), dict(trainer.model.named_parameters())
        assert left.keys() == right.keys()
        largest = 0.0
        for name, parameter in left.items():
            assert parameter.grad is not None, name
            other = right[name].grad
            assert other is not None, name
            torch.testing.assert_close(other, parameter.grad, atol=1e-6, rtol=0)
            largest = max(largest, parameter.grad.abs().max().item())
        assert largest > 1e-2, "the gradients that were compared are not all about zero"

    def test_a_whole_training(self, model: Path, tmp_path: Path) -> None:
        reference, trainer, _, _ = self.setup(model, tmp_path, 0.01)
        reference.train()
        trainer.train()
        there, here = ([e["loss"] for e in t.state.log_history if "loss" in e] for t in (reference, trainer))
        assert len(here) == 6
        assert here == pytest.approx(there, abs=1e-6)
        for name, parameter in reference.model.named_parameters():
            difference = (dict(trainer.model.named_parameters())[name] - parameter).abs().max().item()
            assert difference < 1e-6, name


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1), st.floats(0.1, 4)), min_size=1))
def test_the_loss_is_the_weighted_sum_of_its_two_terms(rows: list[tuple[float, float, float, float]]) -> None:
    a, b, p, weight = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    expected = [
        w * (q * math.log1p(math.exp(y - x)) + (1 - q) * math.log1p(math.exp(x - y)) + 0.3 * (x + y) ** 2)
        for x, y, q, w in rows
    ]
    assert preference_loss(a, b, p, weight, 0.3).tolist() == pytest.approx(expected, rel=1e-9)
    assert torch.equal(preference_loss(a, b, p, torch.ones_like(p)), soft_bradley_terry(a - b, p))


def test_centering_centres(model: Path, tmp_path: Path) -> None:
    """From a reward model whose scores are far from 0; without the term nothing draws them there."""
    network, _ = load_classifier(model, "cpu")
    ids = Chat(load_tokenizer(model), model).ids(turns("How do I bake bread?", GOOD))
    with torch.no_grad():
        state = network.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        network.score.weight[0] = 4 * state / (state @ state)
    network.save_pretrained(tmp_path / "far")
    load_tokenizer(model).save_pretrained(tmp_path / "far")
    found = []
    for centering in (0.0, 0.1):
        options = PreferenceOptions(**ALONE, lora=None, learning_rate=5e-3, epochs=6, centering=centering)
        reward = make_preference(options, Context(tmp_path / str(centering)))
        reward.fit(tmp_path / "far", pairs(), tmp_path / f"o{centering}")
        good, bad = reward.score([Exchange("g", turns("Bread?"), GOOD), Exchange("b", turns("Bread?"), BAD)])
        found.append(abs(good + bad) / 2)
        assert good > bad
    assert found[1] < found[0] / 2, found


# the order of rows -------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 8), st.integers(0, 5))
def test_each_epoch_sees_each_row_once_in_batches_of_falling_length(n: int, epochs: int, batch: int, seed: int) -> None:
    rows = [{"a": [0] * (1 + 7 * i % 11), "b": [0] * (1 + 5 * i % 7), "id": i} for i in range(n)]
    order = in_batches(rows, epochs, batch, seed)
    for start in range(0, len(order), batch):
        lengths = [max(len(row["a"]), len(row["b"])) for row in order[start : start + batch]]
        assert lengths == sorted(lengths, reverse=True)
    assert sorted(row["id"] for row in order) == sorted([*range(n)] * epochs)
    assert order == in_batches(rows, epochs, batch, seed)


def test_micro_batches_do_not_change_what_is_learnt(model: Path, tmp_path: Path) -> None:
    curves = []
    for micro in (None, 1, 2):
        options = PreferenceOptions(
            **ALONE, learning_rate=1e-3, batch_size=4, micro_batch=micro, lora=None, balance={"ai": 1, "me": 2}
        )
        reward = make_preference(options, Context(tmp_path / f"w{micro}"))
        given = [*pairs(0.8, 6), *pairs(0.3, 5, "me")]
        curves.append([row["loss"] for row in reward.fit(model, given, tmp_path / f"o{micro}").curve])
    assert len(curves[0]) == 3  # 11 rows: the last batch is smaller
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert curves[2] == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.parametrize(
    "part",
    [{"lora": None}, {"lora": {"rank": 4, "alpha": 8}}, {"lora": {"rank": 4, "alpha": 8}, "layers": 1}, {"layers": 0}],
    ids=["full", "lora", "last-layer", "head"],
)
def test_recomputed_activations_do_not_change_what_is_learnt(model: Path, tmp_path: Path, part: dict[str, Any]) -> None:
    curves = []
    for again in (False, True):
        options = PreferenceOptions(**ALONE, **part, learning_rate=1e-2, gradient_checkpointing=again)
        reward = make_preference(options, Context(tmp_path / f"w{again}"))
        curves.append([row["loss"] for row in reward.fit(model, pairs(), tmp_path / f"o{again}").curve])
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert curves[0][0] != curves[0][-1]


# which weights are trained -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
@pytest.mark.parametrize("layers", [None, 1, 0])
def test_only_the_wanted_layers_change(
    model: Path, tmp_path: Path, lora: dict[str, int] | None, layers: int | None
) -> None:
    options = PreferenceOptions(**ALONE, lora=lora, layers=layers, learning_rate=1e-2)
    make_preference(options, Context(tmp_path / "w")).fit(model, pairs(), tmp_path / "out")
    before, after = weights(model), weights(tmp_path / "out")
    changed = {name for name, tensor in after.items() if name in before and not torch.equal(tensor, before[name])}
    linear = {name for name in changed if "proj" in name}
    assert {name.split(".")[2] for name in linear} == {None: {"0", "1"}, 1: {"1"}, 0: set()}[layers]
    assert ("model.embed_tokens.weight" in changed) == (lora is None and layers is None)
    if layers == 0:
        assert not changed


def test_the_head_alone_learns_what_plain_steps_on_each_text_give(model: Path, tmp_path: Path) -> None:
    """The states are computed once, in batches; here by hand, one text at a time, with PyTorch's own optimizer."""
    options = {**ALONE, "layers": 0, "epochs": 3, "batch_size": 4, "max_grad_norm": 0.5}
    make_preference(PreferenceOptions(**options, learning_rate=0), Context(tmp_path / "a")).fit(
        model, pairs(), tmp_path / "before"
    )
    make_preference(PreferenceOptions(**options, learning_rate=1e-2), Context(tmp_path / "b")).fit(
        model, pairs(), tmp_path / "after"
    )
    assert len(list((tmp_path / "b").glob("*/states.safetensors"))) == 1
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "before").eval()
    chat = Chat(load_tokenizer(model), model)
    rows = []
    for pair in pairs():
        ids = [chat.ids((*pair.prompt, *turns("", text)[1:])) for text in (pair.response_a, pair.response_b)]
        with torch.no_grad():
            a, b = (network.model(input_ids=torch.tensor([i])).last_hidden_state[0, -1] for i in ids)
        rows.append({"a": a, "b": b, "p": pair.p_a})
    head = network.score.weight
    optimizer = torch.optim.AdamW([head], lr=1e-2, weight_decay=0.0)
    order = in_batches(rows, 3, 4, Context(tmp_path / "c").seed)
    for start in range(0, len(order), 4):
        batch = order[start : start + 4]
        margin = torch.stack([(row["a"] - row["b"]) @ head[0] for row in batch])
        optimizer.zero_grad()
        soft_bradley_terry(margin, torch.tensor([row["p"] for row in batch])).mean().backward()
        torch.nn.utils.clip_grad_norm_([head], 0.5)
        optimizer.step()
    learnt = weights(tmp_path / "after")["score.weight"]
    torch.testing.assert_close(learnt, head.detach(), atol=1e-5, rtol=0)
    assert (learnt - weights(tmp_path / "before")["score.weight"]).abs().max() > 1e-2


def test_more_layers_than_there_are_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 layers to be trained, and the model has 2"):
        make_preference(PreferenceOptions(**ALONE, layers=3), Context(tmp_path / "w")).fit(
            model, pairs(), tmp_path / "out"
        )


def test_from_a_reward_model_the_head_is_kept(model: Path, tmp_path: Path) -> None:
    still = PreferenceOptions(**ALONE, learning_rate=0)
    make_preference(PreferenceOptions(**ALONE, learning_rate=1e-2), Context(tmp_path / "a")).fit(
        model, pairs(), tmp_path / "first"
    )
    second = make_preference(still, Context(tmp_path / "b", seed=99))
    second.fit(tmp_path / "first", pairs(), tmp_path / "second")
    assert same(tmp_path / "first", tmp_path / "second")
    fresh = make_preference(still, Context(tmp_path / "c", seed=99))
    fresh.fit(model, pairs(), tmp_path / "third")
    assert not torch.equal(weights(tmp_path / "third")["score.weight"], weights(tmp_path / "first")["score.weight"])


def test_a_classifier_of_two_classes_is_refused(model: Path, tmp_path: Path) -> None:
    two = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    two.save_pretrained(tmp_path / "two")
    load_tokenizer(model).save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match="2 outputs"):
        make_preference(PreferenceOptions(**ALONE), Context(tmp_path / "w")).fit(
            tmp_path / "two", pairs(), tmp_path / "out"
        )


# what others load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_transformers_and_trl_load_what_was_saved(model: Path, tmp_path: Path, lora: dict[str, int] | None) -> None:
    out = tmp_path / "pm"
    reward = make_preference(PreferenceOptions(**ALONE, lora=lora, learning_rate=1e-2), Context(tmp_path / "w"))
    reward.fit(model, pairs(), out)
    conversations = [turns("How do I bake bread?", text) for text in (GOOD, BAD, "")]
    expected = reward.score([Exchange(str(i), c[:-1], c[-1].content) for i, c in enumerate(conversations)])
    assert sorted(path.name for path in out.glob("*.safetensors")) == ["model.safetensors"]

    network = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert network.config.num_labels == 1
    texts = [tokenizer.apply_chat_template([m.as_dict() for m in c], tokenize=False) for c in conversations]
    with torch.no_grad():
        plain = network(**tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)).logits[:, 0]
    assert plain.tolist() == pytest.approx(expected, abs=1e-5)
    found = pipeline("text-classification", model=str(out), device="cpu")(texts, function_to_apply="none")
    assert [row["score"] for row in found] == pytest.approx(expected, abs=1e-5)

    rows = [
        {
            "prompt": [m.as_dict() for m in c[:-1]],
            "chosen": [{"role": "assistant", "content": GOOD}],
            "rejected": [{"role": "assistant", "content": BAD}],
        }
        for c in conversations[:2]
    ]
    trainer = RewardTrainer(
        model=str(out),
        args=RewardConfig(
            str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none", max_steps=1, disable_tqdm=True,
            gradient_checkpointing=False, save_strategy="no", logging_steps=1, learning_rate=0.0,
        ),
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "margin" in entry]
    assert entry["margin"] == pytest.approx(expected[0] - expected[1], abs=1e-4)


def test_the_score_is_read_at_the_end_of_the_answer(model: Path, tmp_path: Path) -> None:
    reward = make_preference(PreferenceOptions(**ALONE, learning_rate=1e-2), Context(tmp_path / "w"))
    reward.fit(model, pairs(), tmp_path / "pm")
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pm")
    chat = Chat(load_tokenizer(tmp_path / "pm"), tmp_path / "pm")
    exchanges = [Exchange(str(n), turns("Hi", "Hello.", "Bread?"), "flour " * n) for n in (0, 1, 30)]
    for exchange, score in zip(exchanges, reward.score(exchanges), strict=True):
        ids = chat.ids((*exchange.prompt, *turns("", exchange.response)[1:]))
        assert chat.tokenizer.decode(ids).endswith("<|im_end|>\n"), "the template's end of the answer is the last token"
        with torch.no_grad():
            state = network.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        assert (state @ network.score.weight[0]).item() == pytest.approx(score, abs=1e-5)


# truncation and odd rows -------------------------------------------------------------------------------------------


def test_long_conversations_keep_their_last_turn_and_are_counted(model: Path, tmp_path: Path) -> None:
    options = PreferenceOptions(**ALONE, max_length=48)
    early = turns("Word " * 60, "Word " * 60, "Bread?")
    given = [
        *pairs(n=2),
        Preference("early", early, GOOD, BAD, 0.8),
        Preference("cut", turns("Bread?"), "flour " * 80, BAD, 0.8),
    ]
    reward = make_preference(options, Context(tmp_path / "w"))
    result = reward.fit(model, given, tmp_path / "pm")
    assert result.metrics["answers_shortened"] == 2
    assert result.metrics["answers_cut"] == 1
    assert any("lost early turns to fit 48 tokens" in note for note in result.notes)
    long, short = reward.score([Exchange("x", early, GOOD), Exchange("y", turns("Bread?"), GOOD)])
    assert long == short, "what was said before does not fit, and the last exchange is all there"
    ends = reward.score(
        [Exchange("x", turns("Hi"), "flour " * 200 + "salt"), Exchange("y", turns("Hi"), "flour " * 200)]
    )
    assert ends[0] != ends[1], "the end of an answer is never cut"


def test_identical_pairs_empty_answers_and_ties_are_counted(model: Path, tmp_path: Path) -> None:
    given = [
        *pairs(n=4),
        Preference("same", turns("Bread?"), GOOD, GOOD, 0.9),
        Preference("empty", turns("Bread?"), GOOD, "", 0.9),
        Preference("blank", turns("Bread?"), "", " \n", 0.5),
        Preference("tie", turns("Bread?"), GOOD, BAD, 0.5),
    ]
    result = make_preference(PreferenceOptions(**ALONE), Context(tmp_path / "w")).fit(model, given, tmp_path / "pm")
    assert result.metrics["comparisons"] == 7
    assert result.metrics["comparisons_identical"] == 1
    assert result.metrics["answers_empty"] == 3
    assert result.metrics["comparisons_undecided"] == 2
    assert len(result.notes) == 4, result.notes
    assert all(math.isfinite(row["loss"]) for row in result.curve)


def test_a_training_on_ties_alone_learns_and_claims_nothing(model: Path, tmp_path: Path) -> None:
    given = [Preference(f"t{i}", turns(f"Bread {i}?"), GOOD, BAD, 0.5) for i in range(20)]
    options = PreferenceOptions(helpful="none", heldout=0.3)
    result = make_preference(options, Context(tmp_path / "w")).fit(model, given, tmp_path / "pm")
    assert "heldout_accuracy" not in result.metrics
    assert "heldout_brier" in result.metrics
    assert "accuracy_second_half" not in result.metrics


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_a_loss_that_is_not_a_number_saves_nothing(model: Path, tmp_path: Path, lora: dict[str, int] | None) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    tensors = weights(model)
    tensors["model.layers.0.mlp.up_proj.weight"] *= torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    options = PreferenceOptions(**ALONE, lora=lora, save_steps=1)
    with pytest.raises(CAIError, match="step 1"):
        make_preference(options, Context(tmp_path / "w")).fit(broken, pairs(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "w").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "part",
    [{"lora": None}, {"lora": {"rank": 4, "alpha": 8}}, {"lora": None, "layers": 1}, {"layers": 0}],
    ids=["full", "lora", "last-layer", "head"],
)
def test_a_resumed_training_ends_with_the_same_weights_and_figures(
    model: Path, tmp_path: Path, part: dict[str, Any]
) -> None:
    options = PreferenceOptions(
        **part, learning_rate=1e-2, batch_size=4, micro_batch=2, epochs=2, save_steps=1, heldout=0.2, token_budget=600
    )
    straight = make_preference(options, Context(tmp_path / "w1")).fit(model, pairs(), tmp_path / "a")
    stop_at = 5 if part.get("layers") != 0 else 10  # where the head alone learns, reading is reported first
    with pytest.raises(Interrupted):
        make_preference(options, Context(tmp_path / "w2", stop_at=stop_at)).fit(model, pairs(), tmp_path / "b")
    again = Context(tmp_path / "w2")
    resumed = make_preference(options, again).fit(model, pairs(), tmp_path / "b")
    assert 1 < again.progress.seen[0][0] < again.progress.seen[0][1] < 20
    assert same(tmp_path / "a", tmp_path / "b")
    assert resumed == straight


# mixture -----------------------------------------------------------------------------------------------------------


def some(n: int, source: str = "ai") -> list[Preference]:
    return [Preference(f"{source}{i}", turns(f"q {source} {i}"), "a", "b", 1.0, source, 1.0 + i % 3) for i in range(n)]


@given(st.floats(0.05, 0.95), st.integers(1, 20), st.integers(1, 20))
def test_the_balance_is_what_was_asked_for(share: float, n: int, helpful: int) -> None:
    rows = balanced([*some(n), *some(helpful, "helpful")], {"ai": share, "helpful": 1 - share})
    total = sum(r.weight for r in rows)
    assert sum(r.weight for r in rows[:n]) / total == pytest.approx(share)
    assert total == pytest.approx(n + helpful)
    first, second = [r.weight for r in rows[:n]], [p.weight for p in some(n)]
    assert [w / first[0] for w in first] == pytest.approx([w / second[0] for w in second]), (
        "within a source nothing moves"
    )
    plain = balanced([*some(n), *some(helpful, "helpful")], None)
    assert sum(r.weight for r in plain) == pytest.approx(n + helpful)


def test_a_balance_names_every_source_and_no_other() -> None:
    for balance in ({"ai": 1.0}, {"ai": 1.0, "helpful": 1.0, "more": 1.0}):
        with pytest.raises(UserError, match="3 ai, 2 helpful"):
            balanced([*some(3), *some(2, "helpful")], balance)


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_no_opening_turn_is_on_both_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ends = ("", "?", "!", " ?!", "...")
    questions = [f"How do I pick lock {rng.integers(20)}{ends[rng.integers(5)]}" for _ in range(60)]
    given = [Preference(str(i), turns(q, "Yes?", f"more {i}"), "a", "b", 1.0) for i, q in enumerate(questions)]
    train, heldout = split(given, 0.3)
    assert len(train) + len(heldout) == 60
    first, second = ({p.prompt[0].content.rstrip(" ?!.") for p in side} for side in (train, heldout))
    assert not first & second


def test_openings_are_compared_by_their_words() -> None:
    def of(text: str) -> str:
        return opening(turns(text))

    assert of("How  ARE you?\n") == of("how are, you!") == "how are you"
    assert of("\u4f60\u597d\u3002") == of("\u4f60\u597d!") != of("\u518d\u89c1!")
    assert of("???") != of("!!!"), "no words are no common words"


def test_split_conversations_among_the_helpful_ones_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = "\n\nHuman: Hi.\n\nAssistant:"
    split = {"chosen": f"{start} Yes?\n\nHuman: Bread?\n\nAssistant: Bake.", "rejected": f"{start} No."}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n" + json.dumps(split))
    found, there = helpful_comparisons(path, None, 10, 0)
    assert (len(found), there) == (1, 1)
    assert "mine.jsonl: 1 of 2 pairs left out" in caplog.text


def test_helpfulness_comparisons_of_ones_own(model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    rows = [
        {
            "prompt": f"How do I cook {i}?",
            "chosen": "Boil it.",
            "rejected": "No.",
            **({"source": "shop"} if i > 6 else {}),
        }
        for i in range(10)
    ]
    mine.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = PreferenceOptions(helpful=mine, helpful_pairs=10, heldout=0, balance={"ai": 2, "helpful": 1, "shop": 1})
    result = make_preference(options, Context(tmp_path / "w")).fit(model, pairs(), tmp_path / "pm")
    assert result.metrics["comparisons_helpful"] == 10
    sources = {row["name"]: (row["n"], round(row["share_of_loss"], 6)) for row in result.extra["sources"]}
    assert sources == {"ai": (12, 0.5), "helpful": (7, 0.25), "shop": (3, 0.25)}
    default = PreferenceOptions(helpful=mine, heldout=0)
    part = make_preference(default, Context(tmp_path / "v")).fit(model, pairs(), tmp_path / "pm2")
    assert part.metrics["comparisons_helpful"] == round(12 * 135_296 / 182_831)
    assert any("9 of 10 helpfulness comparisons" in note for note in part.notes)
    with pytest.raises(UserError, match="11 helpfulness comparisons wanted and 10 in"):
        make_preference(PreferenceOptions(helpful=mine, helpful_pairs=11), Context(tmp_path / "u")).fit(
            model, pairs(), tmp_path / "pm3"
        )
    mine.write_text('{"prompt": "a", "a": "b", "b": "c"}', encoding="utf-8")
    with pytest.raises(UserError, match="no label") as caught:
        make_preference(default, Context(tmp_path / "t")).fit(model, pairs(), tmp_path / "pm4")
    assert "line 1" in str(caught.value.where)


def test_a_heavier_source_is_learnt_better(model: Path, tmp_path: Path) -> None:
    """Two sources that contradict each other: the balance decides whom the scores follow."""
    margins = []
    for ai in (8.0, 0.125):
        options = PreferenceOptions(
            **ALONE, lora=None, learning_rate=5e-3, epochs=8, balance={"ai": ai, "people": 1.0}, batch_size=24
        )
        reward = make_preference(options, Context(tmp_path / str(ai)))
        others = [replace(pair, p_a=1 - pair.p_a, source="people") for pair in pairs(1.0)]
        reward.fit(model, [*pairs(1.0), *others], tmp_path / f"o{ai}")
        good, bad = reward.score([Exchange("g", turns("Bread?"), GOOD), Exchange("b", turns("Bread?"), BAD)])
        margins.append(good - bad)
    assert margins[0] > 0 > margins[1]


# measures ----------------------------------------------------------------------------------------------------------

row = st.tuples(
    st.floats(-4, 4), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.integers(0, 30), st.integers(0, 30),
    st.sampled_from(["ai", "helpful"]),
)  # fmt: skip


@given(st.lists(row, min_size=1, max_size=40))
def test_measures_equal_an_independent_computation(rows: list[tuple[float, float, int, int, str]]) -> None:
    given = [Preference(str(i), turns("q"), "a" * la, "b" * lb, p, s) for i, (_, p, la, lb, s) in enumerate(rows)]
    found = measure(given, [row[0] for row in rows])
    groups = {group["name"]: group for group in found["groups"]}
    m, p, la, lb = (np.array([row[k] for row in rows], dtype=float) for k in range(4))
    source = np.array([row[4] for row in rows])
    q = 1 / (1 + np.exp(-m))
    right = np.where(m == 0, 0.5, (m > 0) == (p > 0.5))
    shorter = np.where(la == lb, 0.5, (la < lb) == (p > 0.5))
    decided = p != 0.5
    masks = {"all": decided | True, "length-matched": np.maximum(la, lb) <= 1.25 * np.minimum(la, lb)}
    if len(set(source)) > 1:
        masks |= {f"source {name}": source == name for name in set(source)}
    masks["better is shorter"] = decided & (la != lb) & (shorter == 1)
    masks["better is longer"] = decided & (la != lb) & (shorter == 0)
    assert set(groups) == {name for name, mask in masks.items() if mask.any()}
    for name, group in groups.items():
        mask = masks[name]
        assert group["n"] == mask.sum()
        assert group["brier"] == pytest.approx(np.mean((q - p)[mask] ** 2))
        expected = -np.mean((p * np.log(q) + (1 - p) * np.log(1 - q))[mask])
        assert group["loss"] == pytest.approx(expected)
        sure = mask & decided
        if not sure.any():
            assert group["accuracy"] == {"value": None, "low": None, "high": None, "n": 0}
            continue
        for key, values in (("accuracy", right), ("shorter_wins", shorter), ("longer_wins", 1 - shorter)):
            assert group[key]["value"] == pytest.approx(values[sure].mean())
            assert group[key]["n"] == sure.sum()
            wins = values[sure].sum()
            if wins == round(wins):
                interval = binomtest(int(wins), int(sure.sum())).proportion_ci(0.95, "wilson")
                assert [group[key]["low"], group[key]["high"]] == pytest.approx([*interval], abs=1e-9)
    if decided.any():
        first, second = found["differences"]
        assert first["value"] == pytest.approx((right - shorter)[decided].mean())
        assert second["value"] == pytest.approx((right + shorter - 1)[decided].mean())
        for difference in (first, second):
            assert difference["low"] is None or -1 <= difference["low"] <= difference["high"] <= 1
    numbers = flat(found)
    assert numbers["heldout_brier"] == groups["all"]["brier"]
    assert all(math.isfinite(value) for value in numbers.values())
    json.dumps(found, allow_nan=False)


def test_the_interval_of_a_difference_is_paired() -> None:
    """The model agrees with "longer wins" on all but ten of 100 pairs, so the difference is known far better than
    either rate."""
    given = [Preference(str(i), turns("q"), "aa", "a", 1.0 if i % 2 else 0.0) for i in range(100)]
    margins = [1.0 if i >= 10 else (1.0 if i % 2 else -1.0) for i in range(100)]
    longer = next(d for d in measure(given, margins)["differences"] if d["id"] == "longer_wins")
    assert longer["value"] == pytest.approx(0.05)
    assert 0 < longer["low"] < 0.05 < longer["high"] < 0.11


def test_what_was_held_out_is_reported_by_source(model: Path, tmp_path: Path) -> None:
    options = PreferenceOptions(heldout=0.4, helpful_pairs=20)
    result = make_preference(options, Context(tmp_path / "w")).fit(model, pairs(n=20), tmp_path / "pm")
    names = [group["name"] for group in result.extra["heldout"]["groups"]]
    assert names[:3] == ["all", "source ai", "source helpful"]
    assert {"heldout_accuracy_source_helpful", "heldout_calibration_error", "heldout_shorter_wins"} <= set(
        result.metrics
    )
    assert result.metrics["comparisons"] + result.metrics["comparisons_helpful"] + result.metrics["heldout_n"] == 40
