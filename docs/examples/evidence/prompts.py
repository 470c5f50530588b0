"""Writes the prompts of the recipe: ``python prompts.py harmless-base/test.jsonl.gz > prompts.jsonl``.

Red-team prompts are the first turns of hh-rlhf's harmless conversations (Bai et al. 2022a), which are short: a whole
conversation would cost three times as much. The helpful ones come with cai-core. The same file gives the same prompts.
"""

from __future__ import annotations

import gzip
import json
import sys
from hashlib import sha256
from pathlib import Path

from cai_plugins.prompts.builtin import BuiltinPrompts
from cai_plugins.prompts.plugin import BuiltinOptions

TRAIN, HELDOUT = 180, 80
HELPFUL = BuiltinOptions(red_team=0, helpful=40, heldout_red_team=0, heldout_helpful=24, heldout_borderline=8)
LONGEST = 200  # characters: 98 % of the first turns are no longer


def main(path: Path) -> None:
    """Print a prompt a line."""
    openings = set()
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            opening = json.loads(line)["chosen"].partition("\n\nHuman:")[2].partition("\n\nAssistant:")[0].strip()
            if 0 < len(opening) <= LONGEST:
                openings.add(opening)
    chosen = sorted(openings, key=lambda text: sha256(text.encode()).digest())[: TRAIN + HELDOUT]
    rows = [(text, "red_team", "train" if i < TRAIN else "heldout") for i, text in enumerate(chosen)]
    rows += [(p.messages[-1].content, p.kind, p.split) for p in BuiltinPrompts(HELPFUL).load()]
    for text, kind, split in rows:
        print(json.dumps({"prompt": text, "kind": kind, "split": split}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
