"""What a preference model is trained on and what it is measured on: helpfulness comparisons, split and balance."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from cai_core.errors import UserError
from cai_core.text.pairs import labelled_pairs
from cai_core.text.parts import opening
from cai_core.types.records import Conversation, Message
from cai_core.types.reward import Preference
from cai_plugins._torch.seeding import fraction, seed32

HELPFUL = "helpful"
PAPER_HELPFUL = 135_296 / 182_831
"""Helpfulness comparisons per harmlessness comparison in the paper (section 4.2)."""


def helpful_comparisons(
    choice: Literal["builtin", "none"] | Path,
    wanted: int | None,
    given: int,
    seed: int,
    mine: Callable[[Conversation], bool] = lambda prompt: True,
) -> tuple[list[Preference], int]:
    """Helpfulness comparisons to add to ``given`` others, chosen at random by ``seed``, and how many there are.

    choice: the built-in ones, none, or a file that ``labelled_pairs`` reads; a ``source`` in the file stays, else it is
    "helpful". wanted: how many; None is the paper's proportion to ``given``, as far as there are any. mine: says of a
    conversation whether it may be learnt from.
    """
    if choice == "none":
        return [], 0
    there = [pair for pair in (_built_in(seed) if choice == "builtin" else _from_file(choice)) if mine(pair.prompt)]
    if wanted is not None and wanted > len(there):
        name = "built in" if choice == "builtin" else f"in {choice}"
        raise UserError(
            f"{wanted} helpfulness comparisons wanted and {len(there)} {name}", where="reward_model.helpful_pairs"
        )
    count = min(round(given * PAPER_HELPFUL) if wanted is None else wanted, len(there))
    return random.Random(seed32(seed, "helpful")).sample(there, count), len(there)


def _built_in(seed: int) -> list[Preference]:
    text = files("cai_plugins.rewards").joinpath("data/helpful_pairs.jsonl").read_text(encoding="utf-8")
    result = []
    for line in text.splitlines():
        if line.strip():
            pair = json.loads(line)
            first = fraction("side", seed, pair["id"]) < 0.5
            a, b = (pair["chosen"], pair["rejected"]) if first else (pair["rejected"], pair["chosen"])
            prompt = (Message("user", pair["prompt"]),)
            result.append(Preference(pair["id"], prompt, a, b, 1.0 if first else 0.0, source=HELPFUL))
    return result


def _from_file(path: Path) -> list[Preference]:
    result = []
    for pair in labelled_pairs(path):
        assert pair.p_a is not None, "labelled_pairs returned it"
        result.append(Preference(pair.id, pair.prompt, pair.a, pair.b, pair.p_a, pair.source or HELPFUL, pair.weight))
    return result


def split(pairs: Sequence[Preference], share: float) -> tuple[list[Preference], list[Preference]]:
    """Comparisons to learn from and comparisons to measure on, about ``share`` of them.

    The hash of the conversation's first user turn decides, so that no conversation and none that opens alike is on
    both sides, and the side does not change when other comparisons are added.
    """
    heldout = [fraction("heldout", opening(pair.prompt)) < share for pair in pairs]
    return (
        [pair for pair, out in zip(pairs, heldout, strict=True) if not out],
        [pair for pair, out in zip(pairs, heldout, strict=True) if out],
    )


def balanced(pairs: Sequence[Preference], balance: Mapping[str, float] | None) -> list[Preference]:
    """All rows, with weights scaled to a mean of 1 and, with ``balance``, so that the sources' shares of the summed
    weights are as its numbers. Raises ``UserError`` unless it names every source that there is, and only those.

    Collective Constitutional AI had to weigh harmlessness down: its first models apologised for nothing.
    """
    sums: dict[str, float] = {}
    for pair in pairs:
        sums[pair.source] = sums.get(pair.source, 0.0) + pair.weight
    parts: Mapping[str, float] = sums
    if balance is not None:
        counts = Counter(pair.source for pair in pairs)
        if set(balance) != set(sums):
            there = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
            raise UserError(
                f"the balance names {', '.join(sorted(balance))}, and the comparisons to learn from are {there}",
                where="reward_model.balance",
                hint="give every source a number and no other",
            )
        parts = balance
    scale = len(pairs) / sum(parts.values())
    return [replace(pair, weight=pair.weight * parts[pair.source] * scale / sums[pair.source]) for pair in pairs]
