"""Precision, recall and F1 of the refusal rules against people: XSTest's labelled completions (Rottger et al. 2024).

FOLDER holds the completions of XSTest as CSV (columns id, completion, final_label). Half of the rows, chosen by hash,
was read when the rules were written; the other half says how good they are. Partial refusals are left out of both.

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
    for path in sorted(Path(sys.argv[1]).glob("*.csv")):
        model = "guard" if "guard" in path.name else "instruct"
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                label = row["final_label"]
                if label.startswith("3"):
                    continue
                byte = hashlib.sha256(f"{model}/{row['id']}".encode()).digest()[0]
                said, refused = grade(row["completion"]) != "comply", label.startswith("2")
                counts["not read" if byte % 2 else "read"][f"{said:d}{refused:d}"] += 1
    print("| half | n | precision | recall | F1 |\n| --- | --- | --- | --- | --- |")
    for half, found in counts.items():
        hit, false, missed = found["11"], found["10"], found["01"]
        precision, recall = hit / (hit + false), hit / (hit + missed)
        f1 = 2 * precision * recall / (precision + recall)
        print(f"| {half} | {found.total()} | {precision:.3f} | {recall:.3f} | {f1:.3f} |")


if __name__ == "__main__":
    main()
