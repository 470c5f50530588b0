"""What the near-duplicate threshold means: pairs of real prompts on both sides of it.

    python tests/benchmarks/near_duplicates.py HH_RLHF_FILE

prints, per range of similarity, how many pairs of single-turn prompts there are and up to four of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cai_core.text.duplicates import THRESHOLD, grams
from cai_plugins.prompts.builtin import BuiltinPrompts
from cai_plugins.prompts.hh_rlhf import HHRLHFPrompts
from cai_plugins.prompts.plugin import BuiltinOptions, HHRLHFOptions

RANGES = ((1.0, 1.01), (0.9, 1.0), (THRESHOLD, 0.9), (0.7, THRESHOLD), (0.6, 0.7))


def main() -> None:
    everything = BuiltinOptions(
        red_team=80, helpful=80, heldout_red_team=32, heldout_helpful=24, heldout_borderline=8
    )
    texts = [p.messages[0].content for p in BuiltinPrompts(everything).load()]
    if len(sys.argv) > 1:
        options = HHRLHFOptions(path=Path(sys.argv[1]), turns="every")
        texts += [p.messages[0].content for p in HHRLHFPrompts(options).load() if len(p.messages) == 1]
    sets = [grams(text) for text in texts]
    found: dict[tuple[float, float], list[tuple[float, str, str]]] = {span: [] for span in RANGES}
    for i, a in enumerate(sets):
        for j in range(i):
            b = sets[j]
            if min(len(a), len(b)) < 0.6 * max(len(a), len(b)):
                continue
            close = len(a & b) / len(a | b)
            for span in RANGES:
                if span[0] <= close < span[1]:
                    found[span].append((close, texts[j], texts[i]))
    print(f"{len(texts)} prompts, {len(texts) * (len(texts) - 1) // 2} pairs, threshold {THRESHOLD}")
    for (low, high), pairs in found.items():
        print(f"\nsimilarity {low} to {high}: {len(pairs)} pairs")
        for close, a, b in sorted(pairs, reverse=True)[:: max(1, len(pairs) // 4)][:4]:
            print(f"  {close:.2f}  {a[:90]!r}\n        {b[:90]!r}")


if __name__ == "__main__":
    main()
