"""DPO on soft labels: TRL's loss and gradients at the ends, labels that are kept, and what is left out is counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from training import Context, distance, same, turns
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from cai_core.errors import PluginError, UserError
from cai_core.pipeline.job import Job, JobSpec
from cai_core.plugins import Plugins
from cai_core.registry import Registry
from cai_core.testing import CONSTITUTION
from cai_core.testing.tiny import tiny_model
from cai_core.types.records import Message
from cai_core.types.reward import NoReward, Preference
from cai_plugins._torch.chat import Chat
from cai_plugins._torch.loading import load_tokenizer
from cai_plugins.rl.dpo import Collator, SoftDPOTrainer, encode
from cai_plugins.rl.plugin import DPOOptions, make_dpo

TEXTS = (("Mix flour, water and salt.", "No way."), ("Slowly.", "Quickly, with yeast and a hot oven."), ("Yes", "No"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny")


def pairs(*labels: float, weight: float = 1.0) -> list[Preference]:
    return [
        Preference(f"c{i}", turns(f"How do I bake {i} breads?"), *TEXTS[i % 3], p, weight=weight)
        for i, p in enumerate(labels)
    ]


def swapped(found: Sequence[Preference]) -> list[Preference]:
    return [replace(p, response_a=p.response_b, response_b=p.response_a, p_a=1 - p.p_a) for p in found]


def trainer(kind: type[Any], rows: list[dict[str, Any]], model: Path, folder: Path, reference: Path) -> Any:
    """Of TRL or ours, with ``model`` as policy and another model as reference."""
    tokenizer = load_tokenizer(model)
    arguments = DPOConfig(
        str(folder),
        beta=0.3,
        max_length=None,
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        remove_unused_columns=kind is DPOTrainer,
        per_device_train_batch_size=len(rows),
        bf16=False,
    )
    return kind(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=Collator(tokenizer.pad_token_id) if kind is SoftDPOTrainer else None,
    )


def loss_and_gradients(made: Any) -> tuple[float, dict[str, Tensor]]:
    batch = next(iter(made.get_train_dataloader()))
    loss = made.compute_loss(made.model, dict(batch))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}


class Prepared(DPOTrainer):
    """TRL's trainer on the same tokens; all else of it is its own."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A reference that differs from the policy, so that D is not 0."""
    found = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in found.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    folder = tmp_path_factory.mktemp("reference") / "tiny"
    found.save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("p", [1.0, 0.0])
def test_at_the_ends_it_is_trls_loss(p: float, model: Path, other: Path, tmp_path: Path) -> None:
    """p = 1: TRL's loss and gradients; p = 0: those of the swapped pairs."""
    given_pairs = pairs(p, p, p)
    chat = Chat(load_tokenizer(model), model)
    ours = encode(given_pairs, chat, 256).rows
    hard = encode(given_pairs if p else swapped(given_pairs), chat, 256).rows
    loss, gradients = loss_and_gradients(trainer(SoftDPOTrainer, ours, model, tmp_path / "a", other))
    wanted, expected = loss_and_gradients(trainer(Prepared, hard, model, tmp_path / "b", other))
    assert abs(wanted - math.log(2)) > 0.01, "a reference that is the policy would prove nothing"
    assert loss == pytest.approx(wanted, abs=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


def test_our_tokens_are_trls(model: Path, tmp_path: Path) -> None:
    """TRL renders the same conversations to the same prompt and answers."""
    chat = Chat(load_tokenizer(model), model)
    given_pairs = pairs(1.0, 1.0, 1.0)
    rows = [
        {
            "prompt": chat.turns(p.prompt),
            "chosen": chat.turns([Message("assistant", p.response_a)]),
            "rejected": chat.turns([Message("assistant", p.response_b)]),
        }
        for p in given_pairs
    ]
    theirs = trainer(DPOTrainer, rows, model, tmp_path, model).train_dataset
    for ours, row in zip(encode(given_pairs, chat, 256).rows, theirs, strict=True):
        assert ours["prompt_ids"] == row["prompt_ids"]
        for side in ("chosen_ids", "rejected_ids"):
            end = row[side]
            assert ours[side] == end[: len(ours[side])], "what may follow is the template's line end after the turn"
            assert not chat.tokenizer.decode(end[len(ours[side]) :]).strip()


def test_a_soft_label_mixes_the_two_ends(model: Path, other: Path, tmp_path: Path) -> None:
    """The loss is linear in p, weight counts, and each pair keeps its own label through the collator."""
    chat = Chat(load_tokenizer(model), model)

    def loss(found: Sequence[Preference], name: str) -> float:
        return loss_and_gradients(
            trainer(SoftDPOTrainer, encode(found, chat, 256).rows, model, tmp_path / name, other)
        )[0]

    one, zero = loss(pairs(1.0), "one"), loss(pairs(0.0), "zero")
    assert loss(pairs(0.7), "soft") == pytest.approx(0.7 * one + 0.3 * zero, abs=1e-6)
    assert loss(pairs(0.7, weight=2.0), "heavy") == pytest.approx(2 * (0.7 * one + 0.3 * zero), abs=1e-6)
    alone = [loss([pair], f"{i}") for i, pair in enumerate(pairs(0.9, 0.2, 0.6))]
    # Padding changes how float32 rounds the sum over a sequence.
    assert loss(pairs(0.9, 0.2, 0.6), "all") == pytest.approx(sum(alone) / 3, abs=1e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_labels_survive_the_collator(labels: list[float]) -> None:
    rows = [
        {"prompt_ids": [1, 2], "chosen_ids": [3] * (i + 1), "rejected_ids": [4], "p": p, "weight": i + 1.0}
        for i, p in enumerate(labels)
    ]
    batch = Collator(pad_token_id=0)(rows)
    torch.testing.assert_close(batch["labels"], torch.tensor(labels, dtype=torch.float32))
    assert batch["weight"].tolist() == [i + 1.0 for i in range(len(labels))]


def train(model: Path, folder: Path, found: Sequence[Preference], **options: Any) -> Any:
    context = Context(folder / "w")
    context.labels = found
    settings = {"lora": None, "learning_rate": 1e-3, "batch_size": 4, **options}
    return make_dpo(DPOOptions(**settings), context).train(model, [], NoReward(), folder / "out")


def test_micro_batches_change_nothing(model: Path, tmp_path: Path) -> None:
    """Also in the last batch, which is not a full one, and with pairs of unequal weight."""
    found = [replace(p, weight=1.0 + i) for i, p in enumerate(pairs(0.9, 0.1, 0.8, 0.3, 0.6, 0.7))]
    train(model, tmp_path / "whole", found)
    train(model, tmp_path / "parts", found, micro_batch=1)
    assert distance(tmp_path / "whole/out", tmp_path / "parts/out") < 1e-5
    assert distance(model, tmp_path / "whole/out") > 1e-4


def test_recomputed_activations_change_nothing(model: Path, tmp_path: Path) -> None:
    found = pairs(0.9, 0.1, 0.8, 0.3)
    for name, checkpointing in (("kept", False), ("again", True)):
        train(model, tmp_path / name, found, lora={"rank": 4}, gradient_checkpointing=checkpointing)
    assert distance(tmp_path / "kept/out", tmp_path / "again/out") < 1e-6
    assert not same(model, tmp_path / "kept/out")


def test_the_policy_comes_to_prefer_what_the_labels_prefer_and_no_more(model: Path, tmp_path: Path) -> None:
    """At the optimum of one pair sigmoid(beta D) is its label."""
    result = train(model, tmp_path, pairs(0.7), epochs=60, learning_rate=3e-3, beta=0.5)
    assert result.curve[0]["loss"] == pytest.approx(math.log(2))
    assert result.curve[-1]["loss"] == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.3), abs=1e-3)
    assert 1 / (1 + math.exp(-result.curve[-1]["margin"])) == pytest.approx(0.7, abs=0.02)
    assert result.metrics["accuracy_second_half"] == 1.0


def test_what_is_left_out_is_counted(model: Path, tmp_path: Path) -> None:
    """Equal answers, ties, pairs over the limit, and pairs that lose early turns."""
    long = turns("Tell me about bread. " * 12, "Gladly. " * 12, "And cake?")
    found = [
        *pairs(0.9, 0.5),
        Preference("same", turns("How?"), "So.", "So.", 0.5),
        Preference("early", long, "Sweet.", "No.", 0.8),
        Preference("long", turns("How do I bake? " * 60), "So.", "No.", 0.8),
    ]
    encoded = encode(found, Chat(load_tokenizer(model), model), 96)
    assert dict(encoded.counts) == {"pairs": 5, "equal": 1, "too_long": 1, "shortened": 1, "undecided": 1}
    assert len(encoded.rows) == 3
    assert all(len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) <= 96 for r in encoded.rows)
    result = train(model, tmp_path, found, max_length=96)
    assert result.metrics["pairs"] == 3
    assert len(result.notes) == 4
    assert any("1 of 5 pairs left out: two equal answers" in note for note in result.notes)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "no labelled pair"),
        (pairs(0.5, 0.5), "all 2 labels are 0.5"),
        ([Preference("c", turns("How?"), "So.", "So.", 0.9)], "two equal answers"),
        (pairs(math.nan), "must be a probability"),
        (pairs(1.2), "must be a probability"),
    ],
)
def test_labels_that_teach_nothing_are_refused(
    found: list[Preference], message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(model, tmp_path, found)
    assert not (tmp_path / "out").exists()


def test_what_was_not_declared_is_not_there(tmp_path: Path) -> None:
    """Neither labels nor a reward reach an algorithm that does not say that it learns from them."""
    inputs = {"prompts": ("prompts", "0" * 64)}
    spec = JobSpec("rl", "rl", "0" * 64, {}, str(tmp_path), 1, "cpu", inputs, {}, (), {}, asdict(CONSTITUTION))
    job = Job(spec, Registry(Plugins(())), lambda event: None, "cpu")
    with pytest.raises(PluginError, match="run's labels") as failed:
        job.preferences()
    assert "learns_from" in failed.value.hint
    for use in (lambda: NoReward().score([]), lambda: NoReward().load(tmp_path)):
        with pytest.raises(PluginError, match="does not learn from"):
            use()


def test_adapters_off_is_the_reference(model: Path, tmp_path: Path) -> None:
    """With adapters the first loss is log 2: policy and reference are one model; learning rate 0 keeps it."""
    result = train(model, tmp_path, pairs(0.9, 0.2, 0.6), lora={"rank": 4}, learning_rate=0)
    assert [row["loss"] for row in result.curve] == pytest.approx([math.log(2)] * len(result.curve))
    assert same(model, tmp_path / "out")
