"""Reading critiques and revisions back from what a model wrote, which may be anything."""

from __future__ import annotations

import re

from cai_core.errors import UnitError

_LABELS = r"(?:human|user|assistant|ai|system|critique\s?request|revision\s?request|critique|revision)"
# A template's tag at the start of a line: what follows is another turn.
_TURN = re.compile(rf"\n\s*(?:\*\*|#+ *)?{_LABELS}(?:\*\*)?:(?:\*\*)?", re.IGNORECASE)
_CHAT_TAG = re.compile(r"<\s?\|[a-z_]{2,20}\|>|</?(?:s|bos|eos|start_of_turn|end_of_turn)>|\[/?INST\]")
_OTHER_TURN = re.compile(
    r"(?:\*\*|#+ *)?(?:human|user|system|critique\s?request|revision\s?request)(?:\*\*)?:", re.IGNORECASE
)
_OWN_LABEL = re.compile(
    r"(?:\*\*|#+ *)?(?:(?:my |the )?(?:revised|rewritten|revision|rewrite|critique|new|improved|updated|final|"
    r"assistant|ai)(?: (?:of the )?(?:assistant(?:'s)? )?(?:response|answer|version|reply))?)"
    r"\s?(?:\*\*)?:\s*(?:\*\*)?\s*",
    re.IGNORECASE,
)
# "Sure, here is a revised version of the response:", but not "Here are three kinds of soup:".
_META = re.compile(
    r"(?:(?:sure|certainly|of course|absolutely|okay|ok|yes|i apologi[sz]e[^.:\n]{0,60}|i'm sorry[^.:\n]{0,60})"
    r"[,!.]*\s+)?"
    r"(?:here(?:'s|’s| is| are)|this is|below is|i(?:'ve| have)|i (?:would|will|can)|let me)\b"
    r"[^:\n]{0,90}\b(?:revis\w+|rewrit\w+|rewrote|rephras\w+|version|critique|(?:new|updated|improved) response|"
    r"(?:alternative|replacement)[^:\n]{0,30}\b(?:response|answer))"
    r"[^:\n]{0,90}:\s*",
    re.IGNORECASE,
)
# "A more suitable response would be:", "My answer is:", but not "The answer is yes".
_ANSWER = re.compile(
    r"(?:an?|the|my|your|one|another) (?:(?:more|most) )?(?:[\w-]+ )?(?:response|answer|reply|alternative|version) "
    r"(?:is|would be|could be|might be|can be)\s?:\s*",
    re.IGNORECASE,
)
# "I'll adjust the response. Here's a rewritten version:" before the text itself.
_LEAD = re.compile(rf"[^\n:]{{1,160}}[.!]\s+{_META.pattern}", re.IGNORECASE)
# A closing paragraph about the revision instead of to the user.
_AFTERWORD = re.compile(
    r"\n\s*(?:\(?note\b[^\n]{0,80}|(?:in )?(?:this|the|my) (?:revised|rewritten|updated|new|revision|rewrite)\b|"
    r"i(?:'ve| have)? (?:removed|revised|rewritten|rewrote|changed|replaced)\b).*",
    re.IGNORECASE | re.DOTALL,
)
# A revision that speaks about the response instead of being one.
_CRITIQUE_VOICE = re.compile(
    r"(?:the|this|my) (?:assistant(?:'s|’s)? )?(?:last |previous |original |above )?(?:response|reply|critique)\b"
    r"(?! (?:time|rate|team|to (?:this|your)))|"
    r"(?:the|one|another) (?:problem|issue|trouble) with (?:the|this|that|my|your) (?:\w+ )?"
    r"(?:response|answer|reply)\b|"
    r"the assistant(?:'s|’s| (?:is|was|should|could|did|has|does))\b",
    re.IGNORECASE,
)
_QUOTES = (('"', '"'), ("“", "”"), ("'", "'"), ("«", "»"))
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]*]*(?=\s|$)")
_BARE_NUMBER = re.compile(r"\n\s*(?:\d+[.)]|[-*•])\s*$")


def clean(text: str, *, whole_sentences: bool = True) -> str:
    """The text without chat tags, labels, later turns, remarks about itself and quotation marks around it.

    ``whole_sentences`` drops a last sentence that the token limit cut off, if a whole one comes before it.
    Raises ``UnitError`` ("unparseable") when nothing is left, or when the text begins as somebody else's turn.
    """
    text = _CHAT_TAG.split(text.strip(), maxsplit=1)[0].strip()
    if _OTHER_TURN.match(text):
        raise UnitError("unparseable", f"the text begins as another turn: {text[:60]!r}")
    before = ""
    while text != before:  # "Sure, here is the revision:" may come before "Revision:", and quotes around both
        before = text
        text = _OWN_LABEL.sub("", text, count=1) if _OWN_LABEL.match(text) else text
        text = _META.sub("", text, count=1) if _META.match(text) else text
        text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
        text = _ANSWER.sub("", text, count=1) if _ANSWER.match(text) else text
        text = _unquoted(_TURN.split(text, maxsplit=1)[0].strip())
    if whole_sentences:
        text = _whole(text)
    if not re.search(r"\w", text):
        raise UnitError("unparseable", "there is no text")
    return text


def clean_revision(text: str, *, whole_sentences: bool = True) -> str:
    """As ``clean``, and without a closing remark about what was revised.

    Raises ``UnitError`` ("unparseable") too when the text talks about the response instead of being one: the
    confusion of viewpoint that the paper reports (section 3.1).
    """
    text = clean(text, whole_sentences=whole_sentences)
    text = clean(_AFTERWORD.sub("", "\n" + text), whole_sentences=whole_sentences)
    if _CRITIQUE_VOICE.match(text):
        raise UnitError("unparseable", f"the revision talks about the response: {text[:60]!r}")
    return text


def _unquoted(text: str) -> str:
    for opening, closing in _QUOTES:
        inner = text[1:-1]
        if len(text) > 2 and text[0] == opening and text[-1] == closing and opening not in inner:
            return inner.strip()
        # The token limit may have cut the closing mark off.
        if len(text) > 2 and text[0] == opening and opening != "'" and opening not in text[1:]:
            return text[1:].replace(closing, "", 1).strip() if closing not in text[1:] else text
    return text


def _whole(text: str) -> str:
    if _SENTENCE_END.search(text, max(0, len(text) - 4)) and text[-1:] not in "([":
        ends = [m.end() for m in _SENTENCE_END.finditer(text)]
        if ends and ends[-1] == len(text) and not _BARE_NUMBER.search(text):
            return text
    ends = [m.end() for m in _SENTENCE_END.finditer(text) if not _BARE_NUMBER.search(text[: m.end()])]
    if not ends:
        return text
    return text[: ends[-1]].rstrip()
