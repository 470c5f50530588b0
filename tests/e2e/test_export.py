"""``cai export``: what it writes loads with ``datasets``, trains with TRL, and says where it comes from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from cai_core.errors import UserError
from cai_core.pipeline.export import export
from cai_core.pipeline.tables import LABELS
from cai_core.store.tables import read_table
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    (folder / "r.yaml").write_text(RECIPE)
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "run", "r.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "runs").glob("data-*")
    return path


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
    card = (out / "README.md").read_text()
    assert f"path: sft/train.{form}" in card
    record = json.loads((run / "run.json").read_text())
    assert record["constitution"]["digest"] in card
    assert "a \\| \\<b\\>run" in card
    assert all(f"{n} {reason}" in card for reason, n in exported["preference"].left_out.items())


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
