"""How the engine draws a token, in plain Python: for tests that follow it token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cai_plugins._torch.decoding import waiting_times


def plain_draw(probabilities: Any, seed: int, step: int) -> int:
    """The block of 128 tokens, and then the token in it, whose waiting time over its probability is least."""
    values = [float(p) for p in probabilities]
    blocks = [values[i : i + 128] for i in range(0, len(values), 128)]
    waits = waiting_times(seed, step, len(blocks) + 128).tolist()

    def first(shares: Sequence[float], times: Sequence[float]) -> int:
        return min((time / share, i) for i, (share, time) in enumerate(zip(shares, times, strict=False)) if share)[1]

    block = first([sum(block) for block in blocks], waits)
    return 128 * block + first(blocks[block], waits[len(blocks) :])
