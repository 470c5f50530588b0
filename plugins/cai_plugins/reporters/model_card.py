"""``model_card``: a card for the trained model, in the form that model hubs read (Mitchell et al. 2019 name its parts).

It says what is known and what is not; it recommends nothing. No text of a model is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_plugins.reporters.markdown import cell, differences, finding, metrics_table, row, rule
from cai_plugins.reporters.words import plain, seconds


class ModelCardReporter:
    """A ``Reporter`` that writes ``model_card.md``: copy it as README.md beside the weights."""

    def write(self, results: Mapping[str, Any], out: Path) -> Sequence[Path]:
        """Write the card."""
        path = out / "model_card.md"
        path.write_bytes(("\n".join(_lines(results)) + "\n").encode("utf-8"))
        return [path]


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    models, constitution = results["models"], results["constitution"]
    base = models[0] if models else {"label": "no model", "name": ""}
    last = models[-1] if models else base
    yield "---"
    yield "tags:"
    yield from ("- constitutional-ai", "- rlaif")
    source = str(base.get("source") or "")
    if source and not source.startswith("stage "):
        # A JSON string is a YAML string, whatever is in it.
        yield f"base_model: {json.dumps(plain(source), ensure_ascii=False)}"
    yield "---"
    yield ""
    yield f"# {cell(results['title'])}: {cell(last['label'])}"
    yield ""
    for entry in results.get("headline", ()):
        yield f"- {cell(entry['question'])} **{cell(entry['answer'])}.** {cell(entry['text'])}"
    yield from ("", "## The model", "", row(["", ""]), rule(2))
    yield row(["base model", f"{base.get('source') or base['label']}, digest {base.get('digest') or 'unknown'}"])
    yield row(["this model", f"{last['label']}, digest {last.get('digest') or 'unknown'}"])
    yield row(["method", "Constitutional AI (Bai et al. 2022, arXiv 2212.08073)"])
    for stage in results["stages"]:
        if stage["kind"] in ("sft", "reward", "rl"):
            yield row([f"stage {stage['name']}", f"{stage['component']}, {seconds(stage['seconds'])}"])
    yield from ("", "## The constitution it was trained with", "")
    about = [str(constitution[key]) for key in ("id", "version", "title", "licence", "source") if constitution.get(key)]
    yield f"{cell(', '.join(about))}; sha256 {cell(constitution.get('digest', 'unknown'))}."
    yield ""
    for principle in constitution.get("principles") or ():
        words = principle.get("comparison") or principle.get("revision") or principle.get("critique") or ""
        yield f"- **{cell(principle['id'])}**: {cell(words)}"
    yield from ("", "## What it is for, and what it is not", "")
    yield "Research on Constitutional AI, and use that its operator has evaluated. Nothing here shows that the model is"
    yield "safe: the figures are of the prompts named below, and training against a judge teaches its mistakes too."
    yield from ("", "## Data", "", row(["", "prompts"]), rule(2))
    for entry in results["provenance"]["data"]:
        yield row([entry["name"], str(entry["n"])])
    yield from ("", *metrics_table(results), *differences(results), "## What to know before using it", "")
    for entry in results["findings"]:
        yield finding(entry)
    provenance = results["provenance"]
    yield from ("", "## How it was made", "", row(["", ""]), rule(2))
    yield row(["run", results["run"]["id"]])
    yield row(["seed", str(provenance["seed"])])
    yield row(["cai-core", provenance["cai_version"]])
    for key, found in provenance["environment"].items():
        yield row([str(key), str(found)])
    used = [f"{c['id']} {c.get('version', '')} (revision {c.get('revision', '')})" for c in provenance["components"]]
    yield row(["components", ", ".join(used)])
