"""``cai export``: what it writes loads with ``datasets``, trains with TRL, and says where it comes from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from cai_core.errors import UserError
from cai_core.pipeline.export import export
from cai_core.pipeline.tables import CHAINS, DROPPED, LABELS
from cai_core.store.tables import read_table
from cai_core.testing.tiny import tiny_model
from cai_core.text.pairs import read_pairs

RECIPE = """\
schema: 1
name: "data"
summary: "a | <b>run</b>"
seed: 5
constitution: hhh
models: {base: smollm2-135m-instruct}
backend: {name: echo, reply: "Number {seed} is my answer. {text}", fail_every: 9}
prompts: {name: builtin, red_team: 12, helpful: 4, heldout_red_team: 0, heldout_helpful: 0, heldout_borderline: 0}
revise: {rounds: 2, filters: {boilerplate: false}}
pairs: {}
label: {audit: null, labeler: {name: logprob, shots: 0}}
report: null
"""


def cai_run(folder: Path, recipe: str, *arguments: str) -> Path:
    """The run's folder."""
    (folder / "r.yaml").write_text(recipe)
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "run", "r.yaml", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "runs").glob("data-*")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cai_run(tmp_path_factory.mktemp("export"), RECIPE)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_what_is_written_loads_and_is_trls_format(run: Path, tmp_path: Path, form: str) -> None:
    from trl.data_utils import is_conversational

    store = run.parent.parent / ".cai/store"
    out = tmp_path / "out"
    exported = {entry.name: entry for entry in export(run, store, out, form)}
    sft = datasets.load_dataset(str(out), "sft", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(sft) == exported["sft"].rows > 10
    assert is_conversational(sft[0])
    assert sft[0]["prompt"][-1]["role"] == "user"
    assert [turn["role"] for turn in sft[0]["completion"]] == ["assistant"]
    preference = datasets.load_dataset(str(out), "preference", split="train", cache_dir=str(tmp_path / "cache"))
    assert is_conversational(preference[0])
    assert min(preference["p_chosen"]) > 0.5
    (labels,) = (store / "artifacts").glob("label-*/labels.parquet")
    rows = {row["id"]: row for row in read_table(labels, LABELS)}
    assert len(preference) + sum(exported["preference"].left_out.values()) == len(rows)
    for row in preference:
        label = rows[row["id"]]
        answers = (label["a"], label["b"]) if label["p_a"] > 0.5 else (label["b"], label["a"])
        assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == answers
        assert row["p_chosen"] == max(label["p_a"], 1 - label["p_a"])
    (chains,) = (store / "artifacts").glob("revise-*/chains.parquet")
    failed = [row["failure"]["kind"] for row in read_table(chains, CHAINS) if row["failure"]]
    dropped = [row["reason"] for row in read_table(chains.with_name("dropped.parquet"), DROPPED)]
    assert failed
    assert exported["sft"].left_out == Counter([*(f"failed ({kind})" for kind in failed), *dropped])
    card = (out / "README.md").read_text()
    assert f"path: sft/train.{form}" in card
    record = json.loads((run / "run.json").read_text())
    assert record["constitution"]["digest"] in card
    assert "a \\| \\<b\\>run" in card
    left_out = card.replace("\\_", "_")
    assert all(f"{n} {reason}" in left_out for entry in exported.values() for reason, n in entry.left_out.items())


def test_trls_own_trainers_learn_from_it_as_it_is(run: Path, tmp_path: Path) -> None:
    """A step each, on a tiny model: the columns are what they look for, and SFT learns the completions alone."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    for form in ("parquet", "jsonl"):
        export(run, run.parent.parent / ".cai/store", tmp_path / form, form)
    model = tiny_model(tmp_path / "model")
    causal = AutoModelForCausalLM.from_pretrained(model)
    scoring = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    for form, name, trainer, config, net in (
        ("parquet", "sft", SFTTrainer, SFTConfig, causal),
        ("jsonl", "preference", DPOTrainer, DPOConfig, causal),
        ("parquet", "preference", RewardTrainer, RewardConfig, scoring),
    ):
        tokenizer = AutoTokenizer.from_pretrained(model)
        net.config.pad_token_id = tokenizer.pad_token_id
        rows = datasets.load_dataset(str(tmp_path / form), name, split="train", cache_dir=str(tmp_path / "cache"))
        arguments = config(str(tmp_path / "w"), max_steps=1, per_device_train_batch_size=2, report_to="none",
                           use_cpu=True, bf16=False, save_strategy="no", max_length=512)  # fmt: skip
        found = trainer(net, args=arguments, train_dataset=rows, processing_class=tokenizer)
        assert len(found.train_dataset) == len(rows)
        assert found.train().training_loss > 0
        if name == "sft":
            row = found.train_dataset[0]
            learnt = [label for label in row["labels"] if label != -100]
            assert tokenizer.decode(learnt).startswith(rows[0]["completion"][0]["content"])


def test_the_tables_of_every_stage_load(run: Path, tmp_path: Path) -> None:
    tables = list((run.parent.parent / ".cai/store/artifacts").glob("*/*.parquet"))
    names = {path.stem for path in tables}
    assert names >= {"prompts", "chains", "examples", "dropped", "pairs", "labels"}
    for path in tables:
        cache = str(tmp_path / "cache")
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)
        assert len(rows) == pq.ParquetFile(path).metadata.num_rows, path


def test_what_is_written_is_read_back_as_pairs_with_the_same_probabilities(run: Path, tmp_path: Path) -> None:
    """Soft labels stay soft: a program that forgets ``p_chosen`` would learn from certainties."""
    store = run.parent.parent / ".cai/store"
    export(run, store, tmp_path / "out", "jsonl", ties=True)
    (labels,) = (store / "artifacts").glob("label-*/labels.parquet")
    rows = {row["id"]: row for row in read_table(labels, LABELS) if row["p_a"] is not None}
    pairs = {pair.id: pair for pair in read_pairs(tmp_path / "out" / "preference" / "train.jsonl")}
    assert set(pairs) == set(rows)
    assert any(0.5 < max(row["p_a"], 1 - row["p_a"]) < 1 for row in rows.values())
    for name, pair in pairs.items():
        p = rows[name]["p_a"]
        answers = (rows[name]["a"], rows[name]["b"])
        assert ((pair.a, pair.b), pair.p_a) == ((answers, p) if p >= 0.5 else (answers[::-1], 1 - p))


def test_a_data_set_without_rows_is_not_written_and_stands_in_the_card(tmp_path: Path) -> None:
    """``datasets`` cannot load a split without rows, so a data set that names one could not be loaded at all."""
    looping = RECIPE.replace('reply: "Number {seed} is my answer. {text}"', 'reply: "no no no no no no {seed}"')
    path, store, out = cai_run(tmp_path, looping, "--until", "revise"), tmp_path / ".cai/store", tmp_path / "out"
    with pytest.raises(UserError, match=r"no row is left to write \(sft: .* repetition"):
        export(path, store, out, "jsonl")
    assert not out.exists()
    shutil.rmtree(tmp_path / "runs")
    assert [(e.name, e.rows > 0) for e in export(cai_run(tmp_path, looping), store, out, "jsonl")] == [
        ("sft", False),
        ("preference", True),
    ]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "preference"]
    assert datasets.get_dataset_config_names(str(out)) == ["preference"]
    assert "| sft | 0 |" in (out / "README.md").read_text()


def test_a_folder_is_never_half_written_and_never_written_over(run: Path, tmp_path: Path) -> None:
    store = run.parent.parent / ".cai/store"
    with pytest.raises(UserError, match="not in this store"):
        export(run, tmp_path / "other", tmp_path / "out", "jsonl")
    assert list(tmp_path.iterdir()) == []
    export(run, store, tmp_path / "out", "jsonl")
    with pytest.raises(UserError, match="there already"):
        export(run, store, tmp_path / "out", "jsonl")
    with pytest.raises(UserError, match="not a run folder"):
        export(tmp_path, store, tmp_path / "new", "jsonl")
