"""What the best of n samples earns for every smaller n too, from the same samples: a curve of reward against KL.

Of m samples, the mean over all choices of n of the value of the one with the highest reward, an unbiased estimate (that
of Nakano et al. 2021, which Gao et al. 2022 use too). The KL of best-of-n is at most log n - (n - 1)/n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Scored = tuple[Sequence[float], Sequence[float]]
"""The rewards and the held-out rewards of one prompt's samples."""


def best_of(n: int, rewards: Sequence[float], values: Sequence[float]) -> float:
    """The mean, over all ways to choose ``n`` of the samples, of the value of the one with the highest reward. Of equal
    rewards the first sample counts as the highest."""
    m = len(rewards)
    order = sorted(range(m), key=lambda i: (rewards[i], -i))
    ways = math.comb(m, n)
    # The sample of rank i (from 0) is the highest of its choice where all others have lower ranks.
    return math.fsum(math.comb(i, n - 1) / ways * values[order[i]] for i in range(n - 1, m))


def by_n(scored: Sequence[Scored], n: int) -> dict[str, Any]:
    """In the form of ``Validation.report``, with the number of samples for ``step``: 1, 2, 4, ... and ``n`` itself. Of
    prompts with fewer than ``n`` samples nothing is said."""
    whole = [(rewards, values) for rewards, values in scored if len(rewards) == n]
    sizes = sorted({n, *(2**k for k in range(n.bit_length()) if 2**k <= n)})
    rows = []
    for size in sizes if whole else ():
        row = {"step": float(size), "kl": math.log(size) - (size - 1) / size}
        for name, side in (("reward", 0), ("heldout_reward", 1)):
            values = [best_of(size, item[0], item[side]) for item in whole]
            mean = math.fsum(values) / len(values)
            row[name] = mean
            row[f"{name}_std"] = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        rows.append(row)
    why = "no prompt has all of its samples"
    if rows:
        first, last = rows[0], rows[-1]
        peak = max(rows, key=lambda row: row["heldout_reward"])
        why = (
            f"the best of {n} by the reward: {last['reward']:.3f} against {first['reward']:.3f} of one sample; "
            f"held-out reward {last['heldout_reward']:.3f} against {first['heldout_reward']:.3f}"
        )
        if peak is not last:
            why += f", and highest, {peak['heldout_reward']:.3f}, with n = {peak['step']:.0f}"
    return {"best": None, "stopped": None, "why": why, "prompts": len(whole), "answers": len(whole), "rows": rows}
