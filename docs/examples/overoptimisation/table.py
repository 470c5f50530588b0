"""What docs/explanation/overoptimisation.md shows of a run: ``python table.py runs/overoptimisation-*/report.json``."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

RATES = ("refusal", "repetition", "boilerplate", "missing_end")


def main(path: Path) -> None:
    """Print the looks and the paired differences of the result to the start, as Markdown."""
    results = json.loads(path.read_text(encoding="utf-8"))
    (looks,) = results["looks"]
    first = looks["rows"][0]
    print(f"{looks['prompts']} prompts, {looks['answers']} answers a look; {looks['why']}.\n")
    print("| step | KL | reward | held-out reward | tokens | " + " | ".join(RATES) + " |")
    print("| --- " * (5 + len(RATES)) + "|")
    for row in looks["rows"]:
        mark = "**" if row["step"] == looks["best"] else ""
        told = [f"{mark}{row['step']:.0f}{mark}", f"{row['kl']:.2f}"]
        told += [_change(row, first, name, looks["answers"]) for name in ("reward", "heldout_reward")]
        told += [f"{row['length']:.0f}", *(f"{row[name]:.0%}" for name in RATES)]
        print("| " + " | ".join(told) + " |")
    print("\n| paired difference to the start | |\n| --- | --- |")
    for row in results["comparisons"]:
        print(f"| {row['label']} ({row['b']}) | {row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] |")


def _change(row: dict[str, Any], first: dict[str, Any], name: str, answers: int) -> str:
    """The change since the first look, with the standard error of the score itself."""
    return f"{row[name] - first[name]:+.2f} ± {row[f'{name}_std'] / math.sqrt(answers):.2f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
