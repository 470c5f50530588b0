"""What sources share: ids and splits that follow from the content alone."""

from __future__ import annotations

import hashlib
import json

from cai_core.types.prompts import Split
from cai_core.types.records import Conversation


def content_id(messages: Conversation) -> str:
    """A hash of the conversation, 16 hexadecimal digits."""
    content = json.dumps([m.as_dict() for m in messages], ensure_ascii=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def split_of(key: str, heldout_share: float) -> Split:
    """By hash: with other prompts coming and going, this one stays where it is."""
    share = int.from_bytes(hashlib.sha256(b"split\0" + key.encode("utf-8", "replace")).digest()[:8], "big") / 2**64
    return "heldout" if share < heldout_share else "train"
