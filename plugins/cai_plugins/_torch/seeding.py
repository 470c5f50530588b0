"""Random numbers that depend on a seed and an identity alone."""

from __future__ import annotations

import hashlib


def seed32(*parts: object) -> int:
    """A seed in [0, 2**32), which NumPy and Trainer take, from ``parts`` alone: order and restart do not matter."""
    return derived(*parts) & 0xFFFFFFFF


def derived(*parts: object) -> int:
    """A seed in [0, 2**63) from ``parts`` alone."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big") >> 1


def fraction(*parts: object) -> float:
    """A number in [0, 1) from ``parts`` alone, to split data by hash."""
    return derived(*parts) / 2**63
