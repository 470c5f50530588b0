"""``cai label``: preference labels for pairs that are there already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cai_core.cli.terminal import clean
from cai_core.errors import UserError


@click.command("label")
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="New file, .jsonl or .parquet.")
@click.option("--labeler", default="logprob", show_default=True, help="Name of a labeler; see cai plugins list.")
@click.option("-l", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the labeler, e.g. shots=0.")
@click.option("--constitution", default="harmless", show_default=True, help="Name or YAML file.")
@click.option("--model", default="smollm2-135m-instruct", show_default=True, help="The judge.")
@click.option(
    "--backend",
    default="transformers",
    show_default=True,
    help="What the judge runs on; with options as {name: openai, base_url: ...}.",
)
@click.option("--sampler", default="uniform", show_default=True, help="Principles of a comparison: uniform, all, ...")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first pairs.")
@click.option(
    "--audit",
    "audit_set",
    type=click.Path(path_type=Path),
    help="Comparisons with a known answer, to measure the labeler on; default: 80 built-in ones.",
)
@click.option("--no-audit", is_flag=True, help="Do not measure the labeler on comparisons with a known answer.")
@click.option("--store", type=click.Path(path_type=Path), default=Path(".cai/store"), show_default=True)
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Ask again for pairs that failed for a reason of the machine or server (infra).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON.")
def command(
    pairs: Path,
    out: Path,
    labeler: str,
    settings: tuple[str, ...],
    constitution: str,
    model: str,
    backend: str,
    sampler: str,
    seed: int,
    limit: int | None,
    audit_set: Path | None,
    no_audit: bool,
    store: Path,
    runs: Path,
    retry_failed: bool,
    as_json: bool,
) -> None:
    """Label the pairs of PAIRS with P(A preferred), and measure the labeler.

    A line of PAIRS has prompt, a and b; or prompt, chosen and rejected (then the labels are compared with it). OUT gets
    every pair with its label or the reason why there is none, and OUT.stats.json what was measured. It goes on after a
    crash: give the same command again.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise UserError("the name must end in .jsonl or .parquet", where=f"-o {out}")
    if not pairs.is_file():
        raise UserError("no such file", where=str(pairs))
    if out.resolve() == pairs.resolve():
        raise UserError("the labels would overwrite the pairs", where=f"-o {out}", hint="give another name")
    if no_audit and audit_set:
        raise UserError("--audit and --no-audit contradict each other")
    from cai_core.cli.progress import RunDisplay
    from cai_core.cli.setup import planned
    from cai_core.pipeline.labels import audit_accuracy, by_people, label_statistics, label_warnings
    from cai_core.pipeline.runner import run_plan
    from cai_core.pipeline.tables import LABELS
    from cai_core.recipe import recipe_from
    from cai_core.store.artifacts import Artifacts
    from cai_core.store.canonical import write_json
    from cai_core.store.tables import read_table
    from cai_core.text.pairs import read_pairs
    from cai_core.yamlio import load_yaml

    read_pairs(pairs, limit)  # what is wrong with the file is said before anything is measured
    component: dict[str, Any] = {"name": labeler}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"-l {setting!r} is not of the form key=value", hint="for example -l shots=0")
        if key == "name":
            raise UserError("the labeler is named by --labeler", where=f"-l {setting}", hint=f"--labeler {value}")
        component[key], _ = load_yaml(value or "null", f"-l {key}")
    # The file of the labeler `human` answers for its own pairs and for no others.
    label: dict[str, Any] = {"labeler": component, "principle_sampler": sampler}
    if audit_set:
        label["audit"] = {"name": "cai-core/judge_audit", "data": str(audit_set.resolve())}
    elif no_audit:
        label["audit"] = None
    recipe = recipe_from(
        {
            "name": "label",
            "seed": seed,
            "constitution": constitution,
            "models": {"base": model},
            "backend": load_yaml(backend, "--backend")[0],
            "pairs": {"path": str(pairs.resolve())},
            "label": label,
            "report": None,
        },
        "cai label",
        Path.cwd(),
    )
    plan = planned(recipe, store, runs, limit, retry_failed=retry_failed)
    _check_place(out)  # after what costs nothing, before what may take hours
    folder = runs / plan.run_id
    with RunDisplay(quiet=as_json, labels=False) as display:
        run_plan(plan, store, folder, display, command=f"cai label {pairs}")
    digests = {p.stage.kind: p.digest for p in plan.stages}
    artifacts = Artifacts(store / "artifacts")
    labels = artifacts.find("label", digests["label"])
    assert labels is not None, "run_plan returned, so every stage is there"
    rows = list(read_table(labels.path / "labels.parquet", LABELS))
    statistics = label_statistics(rows)
    statistics |= {"warnings": label_warnings(statistics), "audit": None}
    if "audit" in digests:
        audit = artifacts.find("audit", digests["audit"])
        assert audit is not None, "run_plan returned, so every stage is there"
        found = audit_accuracy(audit)
        statistics["audit"] = {key: found[key] for key in ("verdict", "value", "low", "high", "n", "failed", "note")}
    _write(labels.path / "labels.parquet", rows, out)
    write_json(out.with_name(f"{out.name}.stats.json"), statistics)
    if as_json:
        click.echo(json.dumps(statistics, indent=2, allow_nan=False))
        return
    _show(statistics, people=by_people(use.id for p in plan.stages for use in p.stage.components))
    if infra := sum(row["failure"] is not None and row["failure"]["kind"] == "infra" for row in rows):
        click.echo(f"{infra} pairs failed for a reason of the machine or server: `--retry-failed` asks for them again.")
    click.echo(f"Wrote {out} and {out.name}.stats.json")


def _part(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


def _check_place(out: Path) -> None:
    """Make the folder and a file in it, as ``_write`` will. Raises ``UserError`` where that cannot be."""
    for path in (out, out.with_name(f"{out.name}.stats.json")):
        if path.is_dir():
            raise UserError(f"{path} is a folder", where=f"-o {out}", hint="give another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _part(out).touch()
        _part(out).unlink()
    except OSError as error:
        hint = "give a folder that can be written"
        raise UserError(f"cannot write there: {error.strerror}", where=f"-o {out}", hint=hint) from error


def _write(table: Path, rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Beside its place first, so that a crash leaves the old file or the new one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = _part(out)
    if out.suffix == ".parquet":
        shutil.copyfile(table, part)
    else:
        with part.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    part.replace(out)


def _show(statistics: Mapping[str, Any], *, people: bool) -> None:
    from cai_core.pipeline.labels import audit_flag, statistics_lines

    for line in statistics_lines(statistics):
        click.echo(clean(line))
    for warning in statistics["warnings"]:
        click.echo(f"WARNING: {clean(warning)}")
    audit = statistics["audit"]
    if audit is None:
        click.echo("These are people's labels." if people else "The labeler was not audited.")
    elif flag := audit_flag(audit):
        click.echo(f"WARNING: {clean(flag)}. Do not train on these labels.")
    else:
        bounds = f"{audit['value']:.1%} [{audit['low']:.1%}, {audit['high']:.1%}], n {audit['n']}"
        click.echo(f"Audit of the labeler: right in {bounds}; {clean(audit['note'])}.")
