"""Which prompts an algorithm sees, and in which order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from cai_core.errors import UserError
from cai_core.types.prompts import Prompt
from cai_plugins._torch.chat import Chat
from cai_plugins._torch.loading import context_length


def fitting(
    chat: Chat, policy: Path, prompts: Sequence[Prompt], max_new_tokens: int
) -> tuple[list[Prompt], list[list[int]]]:
    """The prompts that leave room for an answer, and their tokens. Raises ``UserError`` where there is none."""
    if not prompts:
        raise UserError("no prompt to sample answers for", where="rl", hint="give prompts of split train")
    room = context_length(policy) - max_new_tokens
    encoded = [(prompt, chat.ids(prompt.messages, generation_prompt=True)) for prompt in prompts]
    usable = [(prompt, ids) for prompt, ids in encoded if 0 < len(ids) <= room]
    if not usable:
        shortest = min(len(ids) for _, ids in encoded)
        raise UserError(
            f"no prompt fits: the model has {context_length(policy)} positions, an answer may have "
            f"{max_new_tokens} tokens, and the shortest prompt has {shortest}",
            where="rl.max_new_tokens",
            hint="lower it, give shorter prompts, or use a policy with a longer context",
        )
    return [prompt for prompt, _ in usable], [ids for _, ids in usable]


def left_out(prompts: Sequence[Prompt], usable: Sequence[Prompt]) -> list[str]:
    """A note, where some did not fit."""
    if len(usable) == len(prompts):
        return []
    return [f"{len(prompts) - len(usable)} of {len(prompts)} prompts left out: too long for the model"]


def layout(prompts: int, wanted: int, seed: int) -> list[int]:
    """``wanted`` indices of prompts: pass after pass over all of them, each in its own order from ``seed``."""
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < wanted:
        order += rng.sample(range(prompts), prompts)
    return order[:wanted]
