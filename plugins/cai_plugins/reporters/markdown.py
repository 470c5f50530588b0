"""``markdown``: findings and tables, for a terminal, a pull request or a model's repository."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_plugins.reporters.words import interval, p_value, plain, signed, size, span, value

# Embeddings, overrides and isolates: the order of what follows in the line changes too. Letters of any direction stay.
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")
AUDITED = (
    ("accuracy", "right", "rate"),
    ("flip_rate", "answers that change with the order", "rate"),
    ("mass", "probability on the two options", "rate"),
    ("mean_p_gap", "mean distance of a label from 0.5", "score"),
    ("longer_preferred", "the longer answer is preferred", "rate"),
    ("length_baseline", "right by always choosing the longer answer", "rate"),
    ("brier", "Brier score", "score"),
    ("calibration_error", "expected calibration error", "score"),
)
LABELLED = (
    ("entropy", "entropy (nats; 0.693 is no opinion)", "score"),
    ("mean_gap", "mean distance from 0.5", "score"),
    ("mass", "probability on the two options", "rate"),
    ("position_bias", "preference for what is shown first", "score"),
    ("flip_rate", "answers that change with the order", "rate"),
    ("tie_rate", "ties", "rate"),
    ("refusal_rate", "refused by the judge", "rate"),
    ("unreadable_rate", "unreadable", "rate"),
    ("longer_preferred", "the longer answer is preferred", "rate"),
    ("length_slope", "change when an answer is twice as long", "score"),
    ("disagreement", "disagreement (standard deviation)", "score"),
)
AGAINST_PEOPLE = (
    ("accuracy", "accuracy", "rate"),
    ("calibration_error", "expected calibration error", "score"),
    ("brier", "Brier score", "score"),
)


class MarkdownReporter:
    """A ``Reporter`` that writes ``report.md``: no model text in it, so nothing harmful to scroll past."""

    def write(self, results: Mapping[str, Any], out: Path) -> Sequence[Path]:
        """Write the file."""
        path = out / "report.md"
        path.write_bytes(("\n".join(_lines(results)) + "\n").encode("utf-8"))
        return [path]

    def write_comparison(self, comparison: Mapping[str, Any], path: Path) -> None:
        """Write the tables of a comparison; the changed items are named, without their texts."""
        path.write_bytes(("\n".join(_comparison(comparison)) + "\n").encode("utf-8"))


def _lines(results: Mapping[str, Any]) -> list[str]:
    lines = [f"# {cell(results['title'])}", ""]
    for entry in results.get("headline", ()):
        lines.append(f"- {cell(entry['question'])} **{cell(entry['answer'])}.** {cell(entry['text'])}")
    lines += [""] if results.get("headline") else []
    lines += [*map(finding, results["findings"]), ""]
    lines += [*metrics_table(results), *differences(results)]
    lines += _judge(results["audit"], results["labels"])
    if results["reward_models"]:
        lines += ["## The preference model", ""]
    for model in results["reward_models"]:
        lines += _reward_model(model)
    lines += _truncation(results)
    lines += ["## What ran", "", row(["stage", "component", "ok", "failed"]), rule(4)]
    for stage in results["stages"]:
        failed = ", ".join(f"{n} {kind}" for kind, n in stage["failed"].items())
        lines.append(row([stage["name"], stage["component"] or "", str(stage["ok"]), failed]))
    constitution = results["constitution"]
    about = " ".join(str(constitution[key]) for key in ("id", "version") if constitution.get(key))
    return [*lines, "", f"Constitution {cell(about)}, sha256 {cell(constitution.get('digest') or 'unknown')}."]


def metrics_table(results: Mapping[str, Any]) -> list[str]:
    """Every metric of every model, under a heading; nothing without metrics."""
    if not results["metrics"]:
        return []
    models = results["models"]
    lines = ["## Before and after", "", row(["metric", *(m["label"] for m in models)]), rule(1 + len(models))]
    for metric in results["metrics"]:
        if metric["values"] and not any(model["name"] in metric["values"] for model in models):
            continue  # of a judge or a reward model; the page and JSON have it
        cells = [metric["label"]]
        for model in models:
            found = metric["values"].get(model["name"])
            known = found and found["value"] is not None
            unit = metric["unit"]
            cells.append(
                f"{value(found['value'], unit)} {interval(found, unit)}, n = {found['n']}" if known else "no score"
            )
        lines.append(row(cells))
    return [*lines, ""]


def differences(results: Mapping[str, Any]) -> list[str]:
    """The paired comparisons, under a heading; nothing without any."""
    if not results["comparisons"]:
        return []
    units = {metric["id"]: metric["unit"] for metric in results["metrics"]}
    lines = ["## Differences", "", row(["metric", "model", "difference", "p (Holm)", "n"]), rule(5)]
    for found in results["comparisons"]:
        unit = units.get(found["metric"])
        lines.append(row([found["label"], found["b"], span(found, unit), f"{found['p_holm']:.3f}", str(found["n"])]))
    return [*lines, ""]


def _comparison(comparison: Mapping[str, Any]) -> list[str]:
    lines = [f"# {cell(comparison['a']['run'])} against {cell(comparison['b']['run'])}", ""]
    lines += [f"- **Warning:** {cell(text)}" for text in comparison["warnings"]]
    lines += map(finding, comparison["findings"])
    head = ["metric", "A", "B", "B - A [95 %]", "p (Holm)", "test", "n", "detectable", "effect", "conclusive"]
    lines += ["", "## Differences", "", row(head), rule(len(head))]
    for found in comparison["rows"]:
        unit = found["unit"]
        cells = [found["label"]]
        for side in ("a_value", "b_value"):
            cells.append(f"{value(found[side]['value'], unit)} {interval(found[side], unit)}")
        cells.append(span(found, unit))
        n = str(found["n"]) if found["clusters"] is None else f"{found['n']} in {found['clusters']} clusters"
        effect = "unknown" if found["effect"] is None else f"{found['effect']:+.2f} ({found['effect_name']})"
        cells += [p_value(found["p_holm"]), found["test"], n, size(found["minimum_detectable"], unit), effect]
        lines.append(row([*cells, "yes" if found["conclusive"] else "no"]))
    if comparison["left_out"]:
        lines += ["", "## Not compared", ""]
        lines += [f"- {cell(entry['label'])}: {cell(entry['reason'])}" for entry in comparison["left_out"]]
    if comparison["settings"]:
        lines += ["", "## What was set differently", "", row(["key", "A", "B"]), rule(3)]
        lines += [row([entry["key"], str(entry["a"]), str(entry["b"])]) for entry in comparison["settings"]]
    if comparison["changes"]:
        lines += ["", "## Items that changed", "", row(["metric", "item", "A", "B", ""]), rule(5)]
        for change in comparison["changes"]:
            values = [f"{change[side]:.4g}" for side in ("a", "b")]
            lines.append(row([change["metric"], change["id"], *values, change["verdict"]]))
    return lines


def finding(found: Mapping[str, Any]) -> str:
    """A line of a list."""
    mark = "**Warning:** " if found["level"] == "warning" else ""
    return f"- {mark}**{cell(found['title'])}.** {cell(found['text'])}"


def _reward_model(model: Mapping[str, Any]) -> list[str]:
    lines = [f"Stage **{cell(model['stage'])}**, {cell(model['component'])}", ""]
    for source in model["sources"]:
        share = value(source["share_of_loss"], "rate")
        lines.append(f"- learnt from {source['n']} {cell(source['name'] or 'unnamed')}, {share} of the loss")
    heldout = model["heldout"]
    if not heldout:
        return [*lines, "- not measured on comparisons that it did not learn from", ""]
    for found in heldout["differences"]:
        known = found["low"] is not None
        ends = f" [{signed(found['low'], 'rate')}, {signed(found['high'], 'rate')}]" if known else ""
        lines.append(
            f"- accuracy less that of {cell(found['label'])}: {signed(found['value'], 'rate')}{ends}, n = {found['n']}"
        )
    head = ["held-out pairs", "n", "accuracy", "shorter wins", "longer wins", "ECE", "Brier", "loss (nats)"]
    lines += ["", row(head), rule(len(head))]
    for group in heldout["groups"]:
        rates = [
            f"{value(group[key]['value'], 'rate')} {interval(group[key], 'rate')}"
            for key in ("accuracy", "shorter_wins", "longer_wins")
        ]
        scores = [value(group[key], "score") for key in ("calibration_error", "brier", "loss")]
        lines.append(row([group["name"], str(group["n"]), *rates, *scores]))
    return [*lines, ""]


def _judge(audit: Mapping[str, Any] | None, labels: Mapping[str, Any] | None) -> list[str]:
    if not audit and not labels:
        return []
    rows = []
    for key, name, unit in AUDITED:
        found = (audit or {}).get(key)
        if found and found["value"] is not None:
            rows.append([f"audit: {name}", f"{value(found['value'], unit)} {interval(found, unit)}, n = {found['n']}"])
    for key, name, unit in LABELLED:
        if (labels or {}).get(key) is not None:
            rows.append([f"labels: {name}", value(labels[key], unit) if labels else ""])
    if labels and labels.get("human"):
        human = labels["human"]
        parts = [f"{name} {value(human[key], unit)}" for key, name, unit in AGAINST_PEOPLE]
        rows.append([f"labels: against {human['n']} labels of people", ", ".join(parts)])
    people = bool(labels and labels["by_people"])
    first = [] if audit or people else ["The labeler was never audited: nothing is known about its labels.", ""]
    title = "## The labels of people" if people and not audit else "## The judge"
    return [title, "", *first, row(["measure", "value"]), rule(2), *map(row, rows), ""]


def _truncation(results: Mapping[str, Any]) -> list[str]:
    if not results["truncation"]:
        return []
    lines = ["## Texts cut at the token limit", "", row(["stage", "texts", "cut", "at tokens"]), rule(4)]
    for found in results["truncation"]:
        told = [f"{found['cut']} of {found['n']} ({value(found['share'], 'rate')})"] if found["n"] else []
        told += [f"{found['unknown']} not known"] if found["unknown"] else []
        lines.append(row([found["stage"], found["texts"], ", ".join(told), str(found["tokens"] or "")]))
    return [*lines, ""]


def row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(map(cell, cells)) + " |"


def rule(columns: int) -> str:
    """What stands under the first row of a table."""
    return "| " + " | ".join(["---"] * columns) + " |"


def cell(text: object) -> str:
    """One line that cannot start markup, a tag, an entity or another cell, nor turn round what stands after it."""
    line = _TURNS.sub("\N{REPLACEMENT CHARACTER}", plain(" ".join(str(text).split())))
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", line)
