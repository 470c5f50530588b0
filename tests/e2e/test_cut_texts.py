"""Texts that a token limit cut: marked one by one, counted in the report, and found in the ledger of an older store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from cai_core.pipeline.tables import ANSWERS, CHAINS, LABELS
from cai_core.store.tables import read_table
from homes import Home

LIMIT = 8
RECIPE = f"""\
schema: 1
name: cut
seed: 5
constitution: hhh
models: {{base: smollm2-135m-instruct}}
backend: {{name: echo, reply: "{{text}}"}}
prompts: {{name: jsonl, path: prompts.jsonl}}
revise: {{rounds: 1, critique_template: paper, sampling: {{max_new_tokens: {LIMIT}}}}}
pairs: {{sampling: {{max_new_tokens: {LIMIT}}}}}
label: {{audit: null, labeler: {{name: logprob, shots: 0}}}}
evaluate: {{evaluators: [length], sampling: {{max_new_tokens: {LIMIT}}}}}
report: [json, markdown]
"""


def asked(n: int) -> str:
    """``n`` words. The backend says them again, a word a token."""
    return " ".join(["Count", *map(str, range(n - 1))])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("cut")
    rows = [
        {"id": f"{split}{n}", "prompt": asked(n), "kind": "red_team", "split": split}
        for split in ("train", "heldout") for n in (LIMIT - 2, LIMIT, LIMIT + 1, 2 * LIMIT, 40)
    ]  # fmt: skip
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "r.yaml").write_text(RECIPE + "contamination: allow\n")
    home = Home(folder)
    home.cai("run", "r.yaml")
    return home


def table(home: Home, kind: str) -> Path:
    (found,) = (home.folder / ".cai/store/artifacts").glob(f"{kind}-*")
    return found


def cut(id: str) -> int:
    """What the length of a prompt says of the answer to it."""
    return LIMIT if int(id.lstrip("abcdefghijklmnopqrstuvwxyz")) > LIMIT else 0


def test_each_text_says_whether_it_was_cut(home: Home) -> None:
    answers = list(read_table(table(home, "answers") / "answers.parquet", ANSWERS))
    assert {row["prompt_id"]: row["cut_at"] for row in answers} == {
        row["prompt_id"]: cut(row["prompt_id"]) for row in answers
    }
    assert {row["cut_at"] for row in answers} == {0, LIMIT}
    assert all(len(row["text"].split()) == LIMIT for row in answers if row["cut_at"])
    for pair in read_table(table(home, "label") / "labels.parquet", LABELS):
        assert pair["cut_at"] == {"a": cut(pair["id"]), "b": cut(pair["id"])}
    for chain in read_table(table(home, "revise") / "chains.parquet", CHAINS):
        assert chain["cut_at"] == cut(chain["prompt_id"])
        (draft,) = chain["rounds"]
        assert draft["critique_cut_at"] == draft["revision_cut_at"] == cut(chain["prompt_id"])


def results(home: Home) -> dict[str, object]:
    (folder,) = (home.folder / "runs").glob("cut-*")
    found: dict[str, object] = json.loads((folder / "report.json").read_text())
    return found


def test_the_report_counts_them(home: Home) -> None:
    found = results(home)
    schema = json.loads((Path(__file__).parents[2] / "docs/reference/results.schema.json").read_text())
    jsonschema.validate(found, schema, cls=jsonschema.Draft202012Validator)
    counted = [(e["stage"], e["model"], e["texts"], e["n"], e["cut"]) for e in found["truncation"]]  # type: ignore[attr-defined]
    assert counted == [
        ("revise", None, "answers", 5, 3), ("revise", None, "critiques", 5, 3), ("revise", None, "revisions", 5, 3),
        ("pairs", None, "answers", 10, 6), ("answers[base]", "base", "answers", 5, 3),
    ]  # fmt: skip
    titles = [finding["title"] for finding in found["findings"]]  # type: ignore[attr-defined]
    assert "60.0 % of the evaluated answers were cut at the token limit" in titles
    (folder,) = (home.folder / "runs").glob("cut-*")
    assert "3 of 5 (60.0 %)" in (folder / "report.md").read_text()


def test_tables_that_are_made_again_need_no_model(home: Home) -> None:
    """The ledger of an older store has what its tables lack."""
    before, said = home.rows(), results(home)
    for kind in ("answers", "revise", "pairs", "label", "report"):
        shutil.rmtree(table(home, kind))
    home.cai("run", "r.yaml")
    assert home.rows() == before
    (folder,) = (home.folder / "runs").glob("cut-*")
    stages = json.loads((folder / "run.json").read_text())["stages"]
    assert {stage["id"] for stage in stages if stage.get("reused")} == {"prompts", "evaluate"}, "what comes after stays"
    assert {**results(home), "stages": None} == {**said, "stages": None}
