"""How often the quality filters fire on real answers: those of hh-rlhf, and the revisions of a run.

    python tests/benchmarks/quality_filters.py HH_RLHF_FILE [RUN_STORE]
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

from cai_core.pipeline.tables import DROPPED, EXAMPLES
from cai_core.store.tables import read_table
from cai_core.text.quality import Boilerplate, bare_refusal, repeats, too_many_emoji
from cai_core.text.transcripts import parse_transcript


def main() -> None:
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
        answers = [parse_transcript(json.loads(line)["chosen"])[-1].content for line in file]
    boilerplate = Boilerplate()
    for answer in answers:
        boilerplate.count(answer)
    tests = {
        "repetition": repeats,
        "refusal": bare_refusal,
        "emoji": too_many_emoji,
        "boilerplate": boilerplate.dominates,
    }
    for name, test in tests.items():
        hits = [answer for answer in answers if test(answer)]
        print(f"{name}: {len(hits)} of {len(answers)}")
        for answer in hits[:: max(1, len(hits) // 4)][:4]:
            print(f"    {answer[:110]!r}")
    for store in map(Path, sys.argv[2:]):
        for folder in sorted((store / "artifacts").glob("revise-*")):
            dropped = Counter(row["reason"] for row in read_table(folder / "dropped.parquet", DROPPED))
            kept = sum(1 for _ in read_table(folder / "examples.parquet", EXAMPLES))
            print(f"{folder.name}: {kept} kept, {dict(dropped)} left out")


if __name__ == "__main__":
    main()
