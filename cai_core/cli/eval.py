"""``cai eval``: evaluators on models, without a recipe."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cai_core.cli.terminal import clean
from cai_core.errors import CAIError, UserError

FILES = ("rows.parquet", "metrics.json", "curves.json", "counts.json")


@click.command("eval")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--suite", "suites", multiple=True, required=True, metavar="NAME", help="An evaluator; may be repeated.")
@click.option(
    "--option",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the suites, e.g. data=items.jsonl; of one of several: hhh.data=items.jsonl.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for rows, metrics and counts.")
@click.option(
    "--backend",
    default="transformers",
    show_default=True,
    help="What the models run on; with options as {name: openai, base_url: ...}.",
)
@click.option(
    "--prompts",
    help="Prompts that the models answer: a .jsonl file, or a component as {name: ...}; default: the built-in ones.",
)
@click.option("--max-new-tokens", type=click.IntRange(1, 32768), default=128, show_default=True, help="Of an answer.")
@click.option("--temperature", type=click.FloatRange(0, 10), default=1.0, show_default=True, help="Of the answers.")
@click.option("--judge", help="Model that judges, where a suite asks one; default: the first MODEL.")
@click.option("--judge-backend", help="What the judge runs on; default: as the models.")
@click.option("--labeler", help="Labeler of suites that ask one: a name, or {name: ...} with options.")
@click.option("--reward-model", help="Component that saved the reward model which a suite loads, or that judges.")
@click.option("--constitution", default="harmless", show_default=True, help="Principles of the labeler.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many prompts of each kind, or items of a suite.")
@click.option("--store", type=click.Path(path_type=Path), default=Path(".cai/store"), show_default=True)
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option(
    "--retry-failed", is_flag=True, help="Ask again for what failed for a reason of the machine or server (infra)."
)
@click.option("--json", "as_json", is_flag=True, help="Print metrics and counts as JSON.")
def command(
    models: tuple[str, ...],
    suites: tuple[str, ...],
    settings: tuple[str, ...],
    out: Path | None,
    backend: str,
    prompts: str | None,
    max_new_tokens: int,
    temperature: float,
    judge: str | None,
    judge_backend: str | None,
    labeler: str | None,
    reward_model: str | None,
    constitution: str,
    seed: int,
    limit: int | None,
    store: Path,
    runs: Path,
    retry_failed: bool,
    as_json: bool,
) -> None:
    """Evaluate each MODEL (a catalog name, folder, hub id or server:NAME) with evaluators.

    It goes on after a crash: give the same command again. Exit code 1 where nothing could be scored.
    """
    signal.signal(signal.SIGTERM, _terminate)
    from cai_core.cli.progress import RunDisplay
    from cai_core.pipeline.components import Resolver
    from cai_core.pipeline.plan import make_plan
    from cai_core.pipeline.runner import run_plan
    from cai_core.plugins import load_plugins
    from cai_core.recipe import ComponentRef, recipe_from
    from cai_core.registry import Registry
    from cai_core.store.artifacts import Artifacts
    from cai_core.yamlio import load_yaml

    if len(set(models)) < len(models):
        raise UserError("a model is given twice", where=" ".join(models), hint="each has its place in the results once")
    registry = Registry(load_plugins())
    evaluators = _evaluators(registry, suites, settings, limit)
    section: dict[str, Any] = {
        "evaluators": evaluators,
        "models": [_named(model) for model in models],
        "sampling": {"max_new_tokens": max_new_tokens, "temperature": temperature},
    }
    for key, given in (("labeler", labeler), ("reward_model", reward_model)):
        if given:
            section[key], _ = load_yaml(given, f"--{key.replace('_', '-')}")
    data: dict[str, Any] = {
        "name": "eval",
        "seed": seed,
        "constitution": constitution,
        "models": {"base": models[0], **({"judge": judge} if judge else {})},
        "backend": load_yaml(backend, "--backend")[0],
        "contamination": "allow",
        "evaluate": section,
        "report": None,
    }
    if judge_backend:
        data["backends"] = {"judge": load_yaml(judge_backend, "--judge-backend")[0]}
    recipe = recipe_from(data, "cai eval", Path.cwd())
    uses = [
        Resolver(registry).use("evaluator", ComponentRef.model_validate(ref), recipe, ("evaluate", "evaluators", i), [])
        for i, ref in enumerate(evaluators)
    ]  # what is wrong with them is said by the plan, all at once
    if any(use is not None and "answers" in use.reads for use in uses):
        recipe = recipe_from({**data, "prompts": _prompts(prompts)}, "cai eval", Path.cwd())
    elif prompts:
        raise UserError(
            f"no answers are read by {', '.join(suites)}", where="--prompts", hint="these have items of their own: data"
        )
    plan = make_plan(recipe, registry, store, runs, limit=limit, retry_failed=retry_failed)
    if out is not None:
        _check_place(out)
    folder = runs / plan.run_id
    with RunDisplay(quiet=as_json) as display:
        record = run_plan(plan, store, folder, display, command=shlex.join(["cai", *sys.argv[1:]]))
    artifact = Artifacts(store / "artifacts").find("evaluate", plan.stages[-1].digest)
    assert artifact is not None, "run_plan returned, so every stage is there"
    metrics, counts = (json.loads((artifact.path / f"{name}.json").read_text()) for name in ("metrics", "counts"))
    if out is not None:
        _write(artifact.path, out)
    if as_json:
        shown = [{k: v for k, v in metric.items() if k not in ("per_item", "cluster")} for metric in metrics]
        result = {"status": record["status"], "run": str(folder), "metrics": shown, "counts": counts}
        click.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        _show(metrics, counts, record)
        click.echo(f"Wrote {out}" if out else f"Run folder: {folder}. With -o DIR the rows are written too.")
    if not any(entry["scored"] for entry in counts):
        kinds = {kind for entry in counts for kind in entry["failed"]}
        hint = f"all units failed: {', '.join(sorted(kinds))}; see {folder}/logs" if kinds else "there was no unit"
        raise CAIError("nothing could be scored", where=", ".join(suites), hint=hint)


def _evaluators(registry: Any, suites: Sequence[str], settings: Sequence[str], limit: int | None) -> list[Any]:
    """The suites with their options. Raises ``UserError`` for one of another form, or of a suite that is not there."""
    from cai_core.yamlio import load_yaml

    if len(set(suites)) < len(suites):
        raise UserError("a suite is given twice", where="--suite", hint="evaluate twice, or write a recipe")
    options: dict[str, dict[str, Any]] = {suite: {} for suite in suites}
    if limit is not None:
        for suite in suites:
            if "limit" in registry.find("evaluator", suite).component.options.model_fields:
                options[suite]["limit"] = limit
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--option {setting!r} is not of the form key=value", hint="for example --option limit=20")
        suite, dot, option = key.partition(".")
        wanted = [suite] if dot else list(suites)
        if dot and suite not in options:
            raise UserError(
                f"{suite!r} is none of the suites", where=f"--option {setting}", hint=f"--suite {', '.join(suites)}"
            )
        for one in wanted:
            name = option if dot else key
            if name == "name":
                raise UserError("a suite is named by --suite", where=f"--option {setting}")
            options[one][name], _ = load_yaml(value or "null", f"--option {key}")
    return [{"name": suite, **given} for suite, given in options.items()]


def _named(model: str) -> str:
    """The name of a model under ``evaluate.models``, where "base" and "judge" would mean a role."""
    from cai_core.recipe import ROLES

    return f"./{model}" if model in ("base", *ROLES) else model


def _prompts(given: str | None) -> dict[str, Any] | str:
    from cai_core.yamlio import load_yaml

    if given is None:
        return {"name": "cai-core/builtin", "red_team": 0, "helpful": 0}
    if Path(given).suffix == ".jsonl":
        return {"name": "cai-core/jsonl", "path": given, "heldout_share": 1.0}
    component, _ = load_yaml(given, "--prompts")
    if not isinstance(component, str | dict):
        raise UserError("neither a file nor a component", where="--prompts", hint="a .jsonl file, or {name: ...}")
    return component


def _check_place(out: Path) -> None:
    """Make the folder. Raises ``UserError`` where that cannot be, before anything is computed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".cai-eval.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        hint = "give a folder that can be written"
        raise UserError(f"cannot write there: {error.strerror}", where=f"-o {out}", hint=hint) from error


def _write(artifact: Path, out: Path) -> None:
    """Each file beside its place first, so that a crash leaves the old one or the new one."""
    from cai_core.pipeline.tables import EVAL_ROWS
    from cai_core.store.tables import read_table

    for name in FILES:
        part = out / f".{name}.part"
        shutil.copyfile(artifact / name, part)
        part.replace(out / name)
    part = out / ".rows.jsonl.part"
    with part.open("w", encoding="utf-8") as file:
        for row in read_table(artifact / "rows.parquet", EVAL_ROWS):
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
            # Half of a surrogate pair cannot be written but as the escape that JSON has for it.
            file.write(re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
    part.replace(out / "rows.jsonl")


def _show(metrics: Sequence[Mapping[str, Any]], counts: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
    from cai_core.cli.terminal import columns

    rows = [(m["label"], m["model"], *_numbers(m), m["n"], m["failed"] or "") for m in metrics]
    if rows:
        click.echo(columns(("METRIC", "MODEL", "VALUE", "95 % INTERVAL", "N", "FAILED"), rows))
    notes = dict.fromkeys(metric["note"] for metric in metrics if metric["note"])
    for note in notes:
        click.echo(clean(f"  {note}"))
    for entry in counts:
        failed = ", ".join(f"{n} {kind}" for kind, n in entry["failed"].items())
        click.echo(
            clean(
                f"{entry['evaluator']}, {entry['model']}: {entry['scored']} scored, {entry['unscored']} unscored (the "
                f"model gave no answer), {sum(entry['failed'].values())} failed" + (f" ({failed})" if failed else "")
            )
        )
    if any("infra" in entry["failed"] for entry in counts):
        click.echo("What failed as infra is asked for again with --retry-failed.")


def _numbers(metric: Mapping[str, Any]) -> tuple[str, str]:
    if metric["value"] is None:
        return "not scored", ""
    scale, digits, sign = (100, 1, " %") if metric["unit"] == "rate" else (1, 2, "")
    value = f"{scale * metric['value']:.{digits}f}{sign}"
    if metric["low"] is None:
        return value, ""
    return value, f"[{scale * metric['low']:.{digits}f}, {scale * metric['high']:.{digits}f}] {metric['interval']}"


def _terminate(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt
