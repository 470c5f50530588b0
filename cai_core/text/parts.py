"""Which part of the comparisons a conversation belongs to: decided by its first user turn, whatever else there is."""

from __future__ import annotations

import hashlib
import re

from cai_core.types.records import Conversation


def opening(conversation: Conversation) -> str:
    """The words of the first user turn, without regard to case, white space and punctuation."""
    first = next((m.content for m in conversation if m.role == "user"), conversation[0].content)
    folded = first.casefold()
    # A turn of signs alone has no words, and is not like every other one.
    return " ".join(re.findall(r"\w+", folded)) or " ".join(folded.split())


def held_back(conversation: Conversation, share: float) -> bool:
    """Whether comparisons on ``conversation`` are for the held-out reward model alone: of about ``share`` of all
    openings, chosen by hash, so that conversations that open alike are on one side."""
    text = "heldout reward\0" + opening(conversation)
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")
    return number / 2**64 < share
