"""Which prompts an algorithm sees, and in which order."""

from __future__ import annotations

import random


def layout(prompts: int, wanted: int, seed: int) -> list[int]:
    """``wanted`` indices of prompts: pass after pass over all of them, each in its own order from ``seed``."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < wanted:
        order += rng.sample(range(prompts), prompts)
    return order[:wanted]
