"""``cai constitution``: what a model is held to, for people who never train one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cai_core.cli.terminal import clean, columns

if TYPE_CHECKING:
    from cai_core.types.principles import Constitution


@click.group("constitution")
def command() -> None:
    """List, show, check and import constitutions."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the built-in constitutions."""
    from cai_core.constitution import list_constitutions

    found = list_constitutions()
    if as_json:
        keys = ("id", "version", "title", "licence", "source", "digest")
        rows = [{**{key: getattr(c, key) for key in keys}, "principles": len(c.principles)} for c in found]
        click.echo(json.dumps({"constitutions": rows}, indent=2))
        return
    table = [(c.id, c.version, len(c.principles), c.digest[:12], c.title) for c in found]
    click.echo(columns(("NAME", "VERSION", "PRINCIPLES", "DIGEST", "TITLE"), table))


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--template", help="Show what a model reads: a critique template (chat, paper, direct) or a labeler.")
@click.option("--principle", help="Only the principle with this id.")
def show_command(name: str, as_json: bool, template: str | None, principle: str | None) -> None:
    """Show every principle of NAME: a built-in constitution, or the path of a YAML file.

    With --template it shows the prompts of the first principle that has the text, or of --principle, byte for byte,
    with placeholders in the place of conversation and answers.
    """
    from cai_core.constitution import load_constitution

    constitution = load_constitution(name)
    if principle:
        constitution = _only(constitution, principle)
    if template:
        from cai_core.cli.seen import seen

        prompts = seen(constitution, template)
        if as_json:
            click.echo(json.dumps({"prompts": [{"step": step, "text": text} for step, text in prompts]}, indent=2))
            return
        for step, text in prompts:
            click.secho(f"--- {step} ---", bold=True)
            click.echo(clean(text))
        return
    if as_json:
        click.echo(json.dumps(_as_dict(constitution), indent=2))
        return
    click.echo(clean(f"{constitution.title} ({constitution.id} {constitution.version})", one_line=True))
    for label, text in (
        ("licence", constitution.licence),
        ("source", constitution.source),
        ("digest", constitution.digest),
    ):
        if text:
            click.echo(clean(f"{label}: {text}", one_line=True))
    for number, each in enumerate(constitution.principles, start=1):
        tags = f" [{', '.join(each.tags)}]" if each.tags else ""
        click.echo()
        click.echo(clean(f"{number}. {each.id}, weight {each.weight:g}{tags}", one_line=True))
        for label, text in (
            ("critique", each.critique),
            ("revision", each.revision),
            ("comparison", each.comparison),
        ):
            if text:
                click.echo(clean(f"   {label}: {text}").replace("\n", "\n      "))  # a text cannot pose as another


@command.command("lint")
@click.argument("name")
@click.option("--prompts", type=click.Path(path_type=Path), help="JSON lines of the prompts it is meant for.")
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lint_command(name: str, prompts: Path | None, strict: bool, as_json: bool) -> None:
    """Check NAME for what goes wrong in practice: missing halves, duplicates, contradictions, texts that break a
    template, only-negative wording and, with --prompts, principles that no prompt touches.

    Exits with 2 on an error (with --strict, on a warning too).
    """
    from cai_core.constitution import load_constitution
    from cai_core.constitution.lint import lint

    constitution = load_constitution(name)
    texts = _prompt_texts(prompts) if prompts else []
    findings = lint(constitution, texts)
    if as_json:
        click.echo(json.dumps({"constitution": constitution.id, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        for finding in findings:
            where = ", ".join(finding.principles) or constitution.id
            click.echo(clean(f"{finding.level}: {where}: {finding.message} ({finding.rule})", one_line=True))
        counts = [f"{sum(f.level == level for f in findings)} {level}s" for level in ("error", "warning", "note")]
        click.echo(f"{len(constitution.principles)} principles: {', '.join(counts)}")
    levels = ("error", "warning") if strict else ("error",)
    if any(finding.level in levels for finding in findings):
        raise SystemExit(2)


@command.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("cai-paper.yaml"), show_default=True
)
@click.option("--force", is_flag=True, help="Write over an existing file.")
def import_command(folder: Path, out: Path, force: bool) -> None:
    """Make a constitution of the paper authors' released prompt files in FOLDER: 16 + 16 principles and few-shots.

    The files have no licence that lets you pass them on, so the result is for your own use.
    """
    from cai_core.constitution import load_constitution
    from cai_core.constitution.authors import as_yaml, import_authors
    from cai_core.errors import CAIError, EnvironmentProblem, UserError
    from cai_core.store.canonical import write_atomic

    constitution = import_authors(folder)
    if out.exists() and not force:
        raise UserError("the file is there already", where=str(out), hint="give another name with -o, or --force")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, as_yaml(constitution))
    except OSError as error:
        raise EnvironmentProblem(f"cannot write: {error.strerror}", where=str(out)) from error
    if load_constitution(str(out.resolve())).digest != constitution.digest:
        raise CAIError("what was written does not read back as it was", where=str(out))
    click.echo(f"Wrote {out}: {len(constitution.principles)} principles, digest {constitution.digest[:12]}")
    click.echo(
        f"Use it with `constitution: {out}` in a recipe, or `cai run quickstart -o constitution={out.resolve()}`."
    )


def _only(constitution: Constitution, wanted: str) -> Constitution:
    from dataclasses import replace

    from cai_core.errors import UserError
    from cai_core.yamlio import near_name

    found = tuple(p for p in constitution.principles if p.id == wanted)
    if not found:
        ids = [p.id for p in constitution.principles]
        hint = near_name(wanted, ids) or f"Principles: {', '.join(ids)}."
        raise UserError(f"no principle '{wanted}' in {constitution.id}", hint=hint)
    return replace(constitution, principles=found)


def _prompt_texts(path: Path) -> list[str]:
    from cai_core.errors import UserError

    texts = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        row = json.loads(line)
                        text = row["prompt"] if "prompt" in row else row["messages"][-1]["content"]
                        if not isinstance(text, str):
                            raise TypeError
                        texts.append(text)
                    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                        hint = 'a line is {"prompt": "..."} or {"messages": [...]}'
                        raise UserError("not a prompt", where=f"{path}:{number}", hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts: {error}", where=str(path)) from error
    if not texts:
        raise UserError("there is no prompt in this file", where=str(path))
    return texts


def _as_dict(constitution: Constitution) -> dict[str, Any]:
    return {"schema": 1, **asdict(constitution)}
