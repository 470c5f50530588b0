r"""Transcripts with ``\n\nHuman:`` and ``\n\nAssistant:``, the form of the paper's prompts and of hh-rlhf."""

from __future__ import annotations

import re

from cai_core.types.records import Conversation, Message, Role

TAGS: dict[str, str] = {"system": "System", "user": "Human", "assistant": "Assistant"}
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"\n\n(Human|Assistant):")


def parse_transcript(text: str) -> Conversation:
    """The turns. One space after the colon belongs to the tag; all other white space to the turn, so that
    ``render_transcript`` gives the same bytes back wherever each tag is followed by a space.

    Raises ``ValueError`` when the text does not begin with a tag.
    """
    first, *rest = _TURN.split(text)
    if first or not rest:
        raise ValueError("a transcript begins with a blank line and 'Human:'")
    return tuple(
        Message(_ROLES[tag], content.removeprefix(" ")) for tag, content in zip(rest[::2], rest[1::2], strict=True)
    )


def render_transcript(messages: Conversation) -> str:
    """Each turn after a blank line and its tag."""
    return "".join(f"\n\n{TAGS[message.role]}: {message.content}" for message in messages)


def plain_text(messages: Conversation) -> str:
    """The turns' texts, one after the other, to compare conversations by what is said."""
    return "\n".join(message.content for message in messages)
