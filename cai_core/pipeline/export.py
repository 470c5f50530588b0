"""Data sets out of a run, for other programs: TRL's conversational formats, with a card that says where they come from.

``sft``: ``prompt`` (turns) and ``completion`` (one assistant turn); TRL takes the loss on the completion.
``preference``: ``prompt``, ``chosen``, ``rejected`` and ``p_chosen``, the judge's probability, at least 0.5.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai_core.errors import EnvironmentProblem, UserError
from cai_core.pipeline.tables import CHAINS, DROPPED, EXAMPLES, LABELS
from cai_core.store.artifacts import Artifact, Artifacts
from cai_core.store.tables import read_table, write_table

SFT = {"id": "str", "source": "str", "prompt": "messages", "completion": "messages"}
PREFERENCE = {
    "id": "str", "prompt": "messages", "chosen": "messages", "rejected": "messages", "p_chosen": "float",
    "principles": "json",
}  # fmt: skip


@dataclass(slots=True)
class Exported:
    """One data set: its folder's name, number of rows, and how many were left out for which reason."""

    name: str
    artifact: Artifact
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def export(run: Path, store: Path, out: Path, form: str, *, ties: bool = False) -> list[Exported]:
    """Write every data set of a run that has rows to the new folder ``out``, whole or not at all."""
    record = _record(run)
    artifacts = Artifacts(store / "artifacts")
    found: list[Exported] = []
    for stage in record["stages"]:
        if stage["kind"] not in ("revise", "label") or stage.get("status") not in ("ok", "partial"):
            continue
        artifact = artifacts.find(stage["kind"], stage["digest"])
        if artifact is None:
            raise UserError(
                f"the data of the stage {stage['id']} is not in this store",
                where=str(store),
                hint="give the store of the run with --store, or run the recipe again",
            )
        if damaged := artifacts.torn(artifact):
            raise EnvironmentProblem(
                f"{damaged} is not what the stage {stage['id']} wrote: the disk or another program has changed it",
                where=str(artifact.path),
                hint="move the folder away and run the recipe again: it is made anew from its ledger",
            )
        tag = re.sub(r"\W+", "-", stage["id"].partition("[")[2]).strip("-")
        name = "sft" if stage["kind"] == "revise" else "preference"
        found.append(Exported(f"{name}-{tag}" if tag else name, artifact))
    if not found:
        raise UserError("the run has neither SFT examples nor labels yet", where=str(run))
    if out.exists():
        raise UserError("the folder is there already", where=str(out), hint="give the name of a new one")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for entry in found:
            _write(entry, temporary / entry.name, form, ties)
            if not entry.rows:  # a split without rows is one that `datasets` cannot load
                shutil.rmtree(temporary / entry.name)
        if not any(entry.rows for entry in found):
            reasons = "; ".join(f"{entry.name}: {_reasons(entry)}" for entry in found)
            raise UserError(f"no row is left to write ({reasons})", where=str(run))
        (temporary / "README.md").write_text(card(record, found, form), encoding="utf-8")
        temporary.rename(out)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write: {error.strerror or error}", where=str(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def _record(run: Path) -> dict[str, Any]:
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"not a run folder: {error}", where=str(run), hint="see runs/") from error
    if not isinstance(record, dict):
        raise UserError("not a run folder: run.json is not a mapping", where=str(run))
    return record


def _write(entry: Exported, folder: Path, form: str, ties: bool) -> None:
    folder.mkdir()
    columns = SFT if entry.artifact.kind == "revise" else PREFERENCE
    rows = _examples(entry) if entry.artifact.kind == "revise" else _preferences(entry, ties)
    if form == "parquet":
        entry.rows = write_table(folder / "train.parquet", columns, rows)
        return
    with (folder / "train.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n")
            entry.rows += 1


def _examples(entry: Exported) -> Iterator[dict[str, Any]]:
    for row in read_table(entry.artifact.path / "chains.parquet", CHAINS):
        if row["failure"]:  # what comes after the failed step of a chain is not there to be left out
            entry.left_out[f"failed ({row['failure']['kind']})"] += 1
    for row in read_table(entry.artifact.path / "dropped.parquet", DROPPED):
        entry.left_out[row["reason"]] += 1
    for row in read_table(entry.artifact.path / "examples.parquet", EXAMPLES):
        *prompt, completion = row["messages"]
        yield {"id": row["id"], "source": row["source"], "prompt": prompt, "completion": [completion]}


def _preferences(entry: Exported, ties: bool) -> Iterator[dict[str, Any]]:
    for row in read_table(entry.artifact.path / "labels.parquet", LABELS):
        if row["p_a"] is None:
            entry.left_out[f"failed ({(row['failure'] or {}).get('kind', 'no label')})"] += 1
            continue
        if row["p_a"] == 0.5 and not ties:
            entry.left_out["tie"] += 1
            continue
        first = row["p_a"] >= 0.5
        chosen, rejected = (row["a"], row["b"]) if first else (row["b"], row["a"])
        yield {
            "id": row["id"],
            "prompt": row["prompt"],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "p_chosen": row["p_a"] if first else 1 - row["p_a"],
            "principles": row["principles"],
        }


def card(record: Mapping[str, Any], found: list[Exported], form: str) -> str:
    """The data card; its head is what hubs read."""
    recipe, constitution = record["recipe"], record["constitution"]
    lines = ["---", "configs:"]
    for entry in filter(lambda entry: entry.rows, found):
        lines += [f"- config_name: {entry.name}", "  data_files:", "  - split: train"]
        lines += [f"    path: {entry.name}/train.{form}"]
    lines += ["tags:", "- constitutional-ai", "- rlaif", "---", "", f"# Data of the run {record['run_id']}", ""]
    lines += [
        "Made with cai-core: Constitutional AI (Bai et al. 2022, arXiv 2212.08073) from a recipe. Texts are written by",
        "a language model; red-team prompts and answers may be harmful. Preferences are a model's, not people's.",
        "",
        "| | |",
        "| --- | --- |",
        f"| recipe | {_cell(recipe['name'])}, {_cell(recipe.get('summary', ''))} |",
        f"| constitution | {_cell(constitution['id'])}, sha256 {constitution['digest']} |",
        f"| seed | {record['seed']} |",
    ]
    for name, model in sorted(record["models"].items()):
        lines.append(f"| model {_cell(name)} | {_cell(model['source'])}, digest {model['digest']} |")
    lines += ["", "| data set | rows | left out | stage digest |", "| --- | --- | --- | --- |"]
    for entry in found:
        lines.append(f"| {entry.name} | {entry.rows} | {_cell(_reasons(entry))} | {entry.artifact.digest} |")
    lines += [
        "",
        "`sft`: prompt and completion as turns. `preference`: prompt, chosen and rejected as turns; `p_chosen` is the",
        "judge's probability that `chosen` is the better answer, at least 0.5; train on it as a soft label.",
        "",
    ]
    components = ", ".join(f"{c['id']} {c['version']} (revision {c['revision']})" for c in record["components"])
    lines += [f"Components: {_cell(components)}.", ""]
    return "\n".join(lines)


def _reasons(entry: Exported) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(entry.left_out.items())) or "none"


def _cell(text: object) -> str:
    """Text of a recipe or a component in a table: no line, cell or HTML of its own."""
    plain = " ".join(str(text).split())
    return re.sub(r"([|<>\[\]`*_\\])", r"\\\1", plain)
