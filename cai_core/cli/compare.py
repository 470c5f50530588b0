"""``cai compare``: is one run better than another? Paired tests on the same items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cai_core.cli.terminal import clean, columns
from cai_core.errors import UserError

FORMS = {".html": "html", ".md": "markdown", ".json": "json"}
SHOWN = 3  # changed items of each metric that are printed; the files list all
CLIP = 160  # characters of a text that are printed


@click.command("compare")
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="NAME.html, NAME.md or NAME.json.",
)
@click.option("--model-a", help="Model of the first run; its last one by default.")
@click.option("--model-b", help="Model of the second run; its last one by default.")
@click.option("--store", type=click.Path(path_type=Path), default=".cai/store", show_default=True)
@click.option("--store-b", type=click.Path(path_type=Path), help="Store of the second run, where it has another.")
@click.option("--force", is_flag=True, help="Compare runs with different data, on the items that both have.")
@click.option(
    "--changes",
    "shown",
    type=click.IntRange(min=0),
    default=SHOWN,
    show_default=True,
    help="Changed items printed per metric.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    run_a: Path,
    run_b: Path,
    out: tuple[Path, ...],
    model_a: str | None,
    model_b: str | None,
    store: Path,
    store_b: Path | None,
    force: bool,
    shown: int,
    as_json: bool,
) -> None:
    """Compare what two runs measured, item by item: RUN_B less RUN_A.

    Two-sided paired tests, Holm's correction over all metrics, the effect size, and the difference that this many items
    could have shown. Runs with different held-out prompts or evaluators are refused. To compare two models of one run,
    give it twice with --model-a and --model-b.
    """
    for path in out:
        if path.suffix not in FORMS:
            raise UserError("the name must end in .html, .md or .json", where=f"-o {path}")
        if not path.parent.is_dir():
            raise UserError(f"there is no folder {path.parent}", where=f"-o {path}")
    from cai_core.pipeline.compare_runs import compare_runs, read_side
    from cai_core.plugins import load_plugins
    from cai_core.registry import Registry

    registry = Registry(load_plugins())
    first, second = read_side(run_a, store, model_a), read_side(run_b, store_b or store, model_b)
    comparison = compare_runs(first, second, registry, force=force)
    for path in out:
        offer = registry.find("reporter", f"cai-core/{FORMS[path.suffix]}")
        reporter = offer.component.factory(registry.options(offer, {}, where="cai compare"), None)
        part = path.with_name(f".{path.name}.part")
        reporter.write_comparison(comparison, part)
        part.replace(path)
    if as_json:
        click.echo(json.dumps(comparison, indent=2, allow_nan=False))
        return
    for line in _lines(comparison, shown):
        click.echo(line)
    for path in out:
        click.echo(f"Wrote {clean(path)}")


def _lines(comparison: Mapping[str, Any], shown: int) -> Iterator[str]:
    for letter in ("a", "b"):
        side = comparison[letter]
        yield clean(
            f"{letter.upper()}: {side['run']}, {side['label']} ({side['model']}), seed {side['seed']}", one_line=True
        )
    yield ""
    table = []
    for row in comparison["rows"]:
        known = row["low"] is not None
        ends = f"[{_signed(row['low'], row)}, {_signed(row['high'], row)}]" if known else "[no interval]"
        span = f"{_signed(row['difference'], row)} {ends}"
        table.append(
            [
                row["label"],
                _number(row["a_value"]["value"], row),
                _number(row["b_value"]["value"], row),
                span,
                f"{row['p_holm']:.3f}" if row["p_holm"] >= 0.001 else "< 0.001",
                row["n"] if row["clusters"] is None else f"{row['n']} in {row['clusters']}",
                "unknown" if row["minimum_detectable"] is None else _number(row["minimum_detectable"], row),
                "unknown" if row["effect"] is None else f"{row['effect']:+.2f}",
                "yes" if row["conclusive"] else "no",
            ]
        )
    if table:
        head = ["metric", "A", "B", "B - A [95 %]", "p (Holm)", "n", "detectable", "effect", "conclusive"]
        yield columns(head, table)
        yield ""
    for entry in comparison["left_out"]:
        yield clean(f"Not compared: {entry['label']} ({entry['metric']}): {entry['reason']}", one_line=True)
    for row in comparison["rows"]:
        changes = [change for change in comparison["changes"] if change["metric"] == row["metric"]]
        if changes and shown:
            yield clean(f"{row['label']}: {len(changes)} of {row['n']} items changed", one_line=True)
        for change in changes[:shown]:
            yield clean(
                f"  {change['id']}: {_plain(change['a'])} -> {_plain(change['b'])}, {change['verdict']}", one_line=True
            )
            for name, text in _texts(change):
                yield f"    {name}: {_clip(text)}"
    for text in comparison["warnings"]:
        yield f"WARNING: {clean(text)}"
    for finding in comparison["findings"]:
        mark = "WARNING: " if finding["level"] == "warning" else ""
        yield clean(f"{mark}{finding['title']}. {finding['text']}", one_line=True)


def _texts(change: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if change["prompt"]:
        yield "prompt", change["prompt"][-1]["content"]
        for letter in ("a", "b"):
            yield letter.upper(), change[f"answer_{letter}"] or "no answer"
    elif change["item"]:
        yield "item", json.dumps(change["item"], ensure_ascii=False)


def _clip(text: str) -> str:
    line = clean(text, one_line=True)
    return line if len(line) <= CLIP else line[: CLIP - 1] + "…"


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _number(value: float | None, row: Mapping[str, Any]) -> str:
    if value is None:
        return "unknown"
    return f"{100 * value:.1f} %" if row["unit"] == "rate" else f"{value:.{1 if row['unit'] == 'count' else 3}f}"


def _signed(value: float, row: Mapping[str, Any]) -> str:
    return f"{100 * value:+.1f}" if row["unit"] == "rate" else f"{value:+.{1 if row['unit'] == 'count' else 3}f}"
