"""A preference model on people's labels, from a file to the report, in real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cai_core.errors import UserError
from cai_core.pipeline.tables import LABELS
from cai_core.store.tables import read_table
from cai_core.text.pairs import read_pairs
from tiny import embedded_stand_in

RECIPE = Path(__file__).parents[2] / "docs/examples/preference-model/recipe.yaml"


def transcripts(i: int) -> dict[str, Any]:
    start = f"\n\nHuman: Tell me about number {i}.\n\nAssistant:"
    return {"chosen": f"{start} It is a kind number.", "rejected": f"{start} No. " + "Go away. " * (i % 3)}


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [transcripts(i) for i in range(40)]
    found += [
        {"prompt": f"What is {i}?", "chosen": "A number.", "rejected": "!", "source": "shop", "weight": 0.5}
        for i in range(40)
    ]
    # parts before its last answer, as a few rows of hh-rlhf do
    start = "\n\nHuman: Hi.\n\nAssistant:"
    found.append({"chosen": f"{start} Yes?\n\nHuman: Bread?\n\nAssistant: Bake it.", "rejected": f"{start} No."})
    found.append({**transcripts(41), "id": "same", "rejected": transcripts(41)["chosen"]})
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of the docs, with a tiny model in the place of the embedded one."""
    folder = tmp_path_factory.mktemp("preference")
    embedded_stand_in(folder / "cache")
    shutil.copy(RECIPE, folder / "recipe.yaml")
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows()), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "run", "recipe.yaml", "-o", "reward.balance={human: 3, shop: 1}"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "CAI_CACHE": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "runs").iterdir()
    return path


def test_the_report_says_what_it_learnt_from_and_what_it_is_worth(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    (model,) = report["reward_models"]
    sources = {source["name"]: source for source in model["sources"]}
    assert set(sources) == {"human", "shop"}
    assert sources["human"]["share_of_loss"] == pytest.approx(0.75)
    assert model["metrics"]["comparisons_identical"] == 1
    learnt = sum(source["n"] for source in sources.values())
    assert learnt + model["heldout"]["n"] == 80
    groups = {group["name"]: group for group in model["heldout"]["groups"]}
    assert {"all", "source human", "source shop"} <= set(groups)
    assert groups["source shop"]["longer_wins"]["value"] == 1.0
    (pairs,) = [stage for stage in report["stages"] if stage["kind"] == "pairs"]
    assert pairs["failed"] == {"unparseable": 1}
    titles = [finding["title"] for finding in report["findings"]]
    assert not [title for title in titles if "audited" in title], "people labelled them"
    assert any("preference model" in title for title in titles)
    for name in ("report.html", "report.md"):
        text = (run / name).read_text(encoding="utf-8")
        assert "length-matched" in text or "better is shorter" in text
        assert "source shop" in text
        assert "never audited" not in text


def test_the_unreadable_pair_is_a_row_with_its_reason(run: Path) -> None:
    (path,) = (run.parent.parent / ".cai/store/artifacts").glob("label-*/labels.parquet")
    table = list(read_table(path, LABELS))
    assert len(table) == len(rows())
    labels = json.loads((run / "report.json").read_text(encoding="utf-8"))["labels"]
    assert labels["failed"] == {"unparseable": 1}
    assert (labels["by_people"], labels["by_principle"]) == (True, []), "nobody judged under a principle"
    assert {tuple(row["principles"] or ()) for row in table} == {()}
    assert labels["unreadable_rate"] == 0.0, "the judge was never asked about it"
    (failed,) = [row for row in table if row["failure"]]
    assert failed["failure"]["kind"] == "unparseable"
    assert failed["p_a"] is None
    assert {row["evidence"]["given"].get("weight", 1.0) for row in table if not row["failure"]} == {0.5, 1.0}


def test_what_a_row_says_of_source_and_weight(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    base = {"prompt": "q", "a": "x", "b": "y"}
    path.write_text(json.dumps({**base, "source": "s", "weight": 2}) + "\n" + json.dumps({**base, "b": "z"}))
    first, second = read_pairs(path)
    assert (first.source, first.weight, first.p_a) == ("s", 2.0, None)
    assert (second.source, second.weight, second.failure) == ("", 1.0, "")
    for bad in ({"weight": 0}, {"weight": -1}, {"weight": True}, {"weight": "2"}, {"weight": 1e999}, {"source": 3}):
        path.write_text(json.dumps({**base, **bad}))
        with pytest.raises(UserError, match=f"`{next(iter(bad))}`") as caught:
            read_pairs(path)
        assert "line 1" in str(caught.value.where)


def test_a_file_of_such_transcripts_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(rows()[-2]))
    with pytest.raises(UserError, match="not one conversation") as caught:
        read_pairs(path)
    assert "line 1" in str(caught.value.where)


def test_a_misspelt_source_of_helpful_pairs_is_a_missing_file(tmp_path: Path) -> None:
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["reward"]["helpful"] = "bultin"
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows()[0]))
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "plan", "r.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 2
    assert "reward.helpful" in done.stderr + done.stdout
