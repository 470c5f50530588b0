"""Prints what docs/explanation/evidence.md shows of a run: ``python table.py runs/evidence-*/report.json``.

The samples are the first ones of each kind by the hash of the prompt, so that nobody chose them.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

SAMPLES = {"helpful": 4, "red_team": 2}
PAIRED = {
    "preference_model.harmful": "preference model, harmful",
    "preference_model.harmless": "preference model, harmless",
    "refusal.harmful": "refusals, harmful",
    "refusal.harmless": "refusals, harmless",
    "length": "words per answer",
}


def main(path: Path) -> None:
    """Print the judge's win rates, the paired differences to the start, the KL and some samples, as Markdown."""
    results = json.loads(path.read_text(encoding="utf-8"))
    start, *policies = [model["name"] for model in results["models"]]
    print("| against `" + start + "` | " + " | ".join(f"`{policy}`" for policy in policies) + " |")
    print("|" + " --- |" * (1 + len(policies)))
    for metric in results["metrics"]:
        if metric["id"].startswith("pairwise.win_rate") and set(metric["values"]) & set(policies):
            told = [_rate(metric["values"].get(policy)) for policy in policies]
            print(f"| {metric['label']} | " + " | ".join(told) + " |")
    paired = {(row["metric"], row["a"], row["b"]): row for row in results["comparisons"]}
    for metric, label in PAIRED.items():
        told = [_difference(paired.get((metric, start, policy))) for policy in policies]
        print(f"| {label} | " + " | ".join(told) + " |")
    print("| KL, nats per answer | " + " | ".join(_kl(results, policy) for policy in policies) + " |\n")
    samples = sorted(results["samples"], key=lambda row: sha256(row["prompt"][-1]["content"].encode()).digest())
    chosen = [row for kind, n in SAMPLES.items() for row in [row for row in samples if row["kind"] == kind][:n]]
    for row in chosen:
        print(f"**{_quoted(row['prompt'][-1]['content'])}** ({row['kind']})\n")
        for model in (start, *policies):
            print(f"- `{model}`: {_quoted(row['answers'].get(model) or '(none)')}")
        print()


def _rate(value: dict[str, Any] | None) -> str:
    if value is None or value["value"] is None:
        return "-"
    return f"{100 * value['value']:.0f} % [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


def _difference(row: dict[str, Any] | None) -> str:
    if row is None or row["low"] is None:
        return "-"
    mark = " *" if row["conclusive"] else ""
    return f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]{mark}"


def _kl(results: dict[str, Any], policy: str) -> str:
    for look in results["looks"]:
        if look["stage"] == policy:
            return f"{look['rows'][-1]['kl']:.2f}"
    for curve in results["curves"]:
        if curve["id"] == f"{policy}.kl":
            return f"{curve['series'][0]['y'][-1]:.2f}"
    return "-"


def _quoted(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
