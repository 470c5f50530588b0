"""Precision, recall and F1 of the refusal rules against people: XSTest's labelled completions (Rottger et al. 2024).

FOLDER holds the completions of XSTest as CSV (columns id, completion, final_label). Half of the rows, chosen by hash,
was read when the rules were written; the other half says how good they are. Partial refusals are left out of the first
table; the second says what the rules make of them.

    python tests/benchmarks/refusal_grader.py FOLDER
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import Counter
from pathlib import Path

from cai_core.text.refusals import grade


def main() -> None:
    """Print one row per half."""
    counts: dict[str, Counter[str]] = {"read": Counter(), "not read": Counter()}
    partial: dict[str, Counter[str]] = {"read": Counter(), "not read": Counter()}
    for path in sorted(Path(sys.argv[1]).glob("*.csv")):
        model = "guard" if "guard" in path.name else "instruct"
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                label = row["final_label"]
                byte = hashlib.sha256(f"{model}/{row['id']}".encode()).digest()[0]
                half, found = "not read" if byte % 2 else "read", grade(row["completion"], row["prompt"])
                if label.startswith("3"):
                    partial[half][found] += 1
                    continue
                counts[half][f"{found != 'comply':d}{label.startswith('2'):d}"] += 1
    print("| half | n | precision | recall | F1 |\n| --- | --- | --- | --- | --- |")
    for half, found in counts.items():
        hit, false, missed = found["11"], found["10"], found["01"]
        precision, recall = hit / (hit + false), hit / (hit + missed)
        f1 = 2 * precision * recall / (precision + recall)
        print(f"| {half} | {found.total()} | {precision:.3f} | {recall:.3f} | {f1:.3f} |")
    print("\n| half | partial refusals | refuse | partial | comply |\n| --- | --- | --- | --- | --- |")
    for half, found in partial.items():
        print(f"| {half} | {found.total()} | {found['refuse']} | {found['partial']} | {found['comply']} |")


if __name__ == "__main__":
    main()
