"""Reading critiques and revisions back from what a model wrote, which may be anything."""

from __future__ import annotations

import re

from cai_core.errors import UnitError

_LABELS = r"(?:human|user|assistant|ai|system|critique\s?request|revision\s?request|critique|revision)"
# A template's tag at the start of a line: what follows is another turn.
_TURN = re.compile(
    rf"\n[^\S\n]*(?:(?:\*\*|#+ *)?{_LABELS}(?:\*\*)?:(?:\*\*)?|#+ *(?:instruction|input|response):)", re.IGNORECASE
)
_CHAT_TAG = re.compile(
    r"<\s?\|[a-z_0-9]{2,40}\|>|<｜[^<>｜\n]{1,40}｜>|</?(?:s|bos|eos|start_of_turn|end_of_turn)>|\[/?INST\]"
)
# Tags that open the assistant's turn: what follows is the text itself.
_OPENING = re.compile(
    r"(?:(?:<s>|<bos>|<\|(?:begin_of_text|startoftext|assistant)\|>|<｜(?:Assistant|begin▁of▁sentence)｜>|\[/INST\]|"
    r"(?:<\|im_start\|>|<start_of_turn>)(?:assistant|model)\b|"
    r"<\|start_header_id\|>assistant<\|end_header_id\|>)\s*)+"
)
_OTHER_TURN = re.compile(
    r"(?:\*\*|#+ *)?(?:human|user|system|critique\s?request|revision\s?request)(?:\*\*)?:", re.IGNORECASE
)
_ANEW = r"(?:revised|rewritten|new|improved|updated|corrected|final)"
_THING = r"(?:of the )?(?:assistant(?:'s|’s)? )?(?:response|answer|version|reply)"
_WHOSE = r"(?:my |the |(?:the )?assistant(?:'s|’s) )?"
_OWN_LABEL = re.compile(
    rf"(?:\*\*|#+ *)?{_WHOSE}(?:{_ANEW}|revision|rewrite|critique|assistant|ai)(?: {_THING})?"
    r"\s?(?:\*\*)?:\s*(?:\*\*)?\s*",
    re.IGNORECASE,
)
# "## Revised response" on a line of its own.
_HEADING = re.compile(
    rf"(?:\*\*|#+ *){_WHOSE}(?:{_ANEW} {_THING}|revision|rewrite|critique)\s?(?:\*\*)?[ \t]*(?:\n\s*|$)",
    re.IGNORECASE,
)
# "Sure, here is a revised version of the response:", but not "Here are three kinds of soup:".
_META = re.compile(
    r"(?:(?:sure|certainly|of course|absolutely|okay|ok|yes|i apologi[sz]e[^.:\n]{0,60}|i'm sorry[^.:\n]{0,60})"
    r"[,!.]*\s+)?"
    r"(?:here(?:'s|’s| is| are)|this is|below is|i(?:'ve| have)|i (?:would|will|can)|let me)\b"
    r"[^:\n]{0,90}\b(?:revis\w+|rewrit\w+|rewrote|rephras\w+|version|critique|"
    r"(?:new|updated|improved|corrected) response|(?:another|different|better) way (?:to|of) (?:phras|put|say)\w*|"
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
# "I'll adjust the response. Here's a rewritten version:" and "Sure!\n\nRevised response:" before the text itself.
_LEAD = re.compile(
    rf"[^\n:]{{1,160}}[.!]\s+(?:{_META.pattern}|(?<=\n)(?:\*\*|#+ *)?{_WHOSE}{_ANEW} {_THING}(?:\*\*)?:(?:\*\*)?\s*)",
    re.IGNORECASE,
)
# "Okay, I will rewrite the response.", "Here's my revised answer." and "Sure, here it is:" on a line of their own.
_SURE = r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|yes)[,!.]*\s+"
_META_LINE = re.compile(
    rf"(?:(?:{_SURE})?(?:here(?:'s|’s| is)|below is)\b[^:\n]{{0,60}}\b"
    r"(?:revised|revision|rewritten|rewrite|rephrased|improved|updated|corrected)\b[^:\n]{0,60}|"
    rf"{_SURE}(?:i(?:'ll|’ll| will| can| have|'ve|’ve)\s+(?:revised?|rewr\w+|rephrased?)\b[^:\n]{{0,90}}|"
    r"here (?:it is|you go)))[.!:]?[ \t]*\n\s*",
    re.IGNORECASE,
)
# A revision that comes before it was asked for, after a critique.
_TOO_EARLY = re.compile(
    rf"(?<=[.!?])\s+(?:{_SURE})?(?:here(?:'s|’s| is)|below is)\b[^:\n]{{0,60}}\b(?:revis\w+|rewrit\w+|rephras\w+|"
    r"(?:better|new|improved|updated|corrected|more \w+) (?:response|version|answer))\b[^:\n]{0,60}:",
    re.IGNORECASE,
)
# A closing paragraph about the revision instead of to the user.
_ABOUT = r"(?:revis\w+|rewr\w+|remov\w+|original|response)"
_AFTERWORD = re.compile(
    r"\n[^\S\n]*(?:-{3,}[^\S\n]*\n\s*)?(?:\(?note\b[^\n]{0,80}|"
    r"(?:in )?(?:this|the|my) (?:revised|rewritten|updated|new|revision|rewrite)\b|"
    rf"(?:\*\*|#+ *)?(?:explanation|rationale|changes(?: made)?)(?:\*\*)?:[^\n]*(?:\n[^\n]*)?\b{_ABOUT}\b|"
    r"(?:i hope|(?:please )?let me know if)\b[^\n]{0,60}\b(?:revis\w+|rewr\w+)\b|"
    r"i(?:'ve| have)? (?:removed|revised|rewritten|rewrote|changed|replaced)\b).*|"
    rf"(?<!\s)\s*\(note\b[^()\n]*\b{_ABOUT}\b[^()\n]*\)\s*\Z",
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
_BARE_NUMBER = re.compile(r"\n[^\S\n]*(?:\d+[.)]|[-*•])$")
_ITEM = re.compile(r"(?:\A|\n)[ \t]*(?:\d+[.)]|[-*•])[ \t]+\S[^\n]*(?=\n)")


def clean(text: str, *, unfinished: bool = False) -> str:
    """The text without thoughts, chat tags, labels, later turns, remarks about itself and quotation marks around it.

    ``unfinished``: the token limit cut it off; a last sentence or list item that is not whole is dropped, if a whole
    one comes before it. Raises ``UnitError`` ("unparseable") when nothing is left, when the text begins as somebody
    else's turn, and when it ends inside a ``<think>`` block.
    """
    text = without_thoughts(text).strip()
    if opening := _OPENING.match(text):
        text = text[opening.end() :]
    text = _CHAT_TAG.split(text, maxsplit=1)[0].strip()
    if _OTHER_TURN.match(text):
        raise UnitError("unparseable", f"the text begins as another turn: {text[:60]!r}")
    before = ""
    while text != before:  # "Sure, here is the revision:" may come before "Revision:", and quotes around both
        before = text
        for remark in (_OWN_LABEL, _HEADING, _META, _META_LINE, _LEAD, _ANSWER):
            text = text[found.end() :] if (found := remark.match(text)) else text
        text = _unquoted(_TURN.split(text, maxsplit=1)[0].strip())
    if unfinished:
        text = _whole(text)
    if not re.search(r"\w", text):
        raise UnitError("unparseable", "there is no text")
    return text


def clean_critique(text: str, *, unfinished: bool = False) -> str:
    """As ``clean``, and without a revision that comes with the critique."""
    return clean(_TOO_EARLY.split(without_thoughts(text), maxsplit=1)[0], unfinished=unfinished)


def clean_revision(text: str, *, unfinished: bool = False) -> str:
    """As ``clean``, and without a closing remark about what was revised.

    Raises ``UnitError`` ("unparseable") too when the text talks about the response instead of being one: the
    confusion of viewpoint that the paper reports (section 3.1).
    """
    text = clean(text, unfinished=unfinished)
    text = clean(_AFTERWORD.sub("", "\n" + text))
    if _CRITIQUE_VOICE.match(text):
        raise UnitError("unparseable", f"the revision talks about the response: {text[:60]!r}")
    return text


def without_thoughts(text: str) -> str:
    """What comes after the ``<think>`` block of a model that thinks first; its template may have opened the block.

    Raises ``UnitError`` ("unparseable") where the block does not end.
    """
    _, closed, after = text.rpartition("</think>")
    if not closed and text.lstrip().startswith("<think>"):
        raise UnitError("unparseable", "it is all a <think> block without an end; raise `max_new_tokens`")
    return after.lstrip() if closed else text


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
    ends = [m.end() for m in _SENTENCE_END.finditer(text)]
    ends = [end for end in ends if not _BARE_NUMBER.match(text, max(0, text.rfind("\n", 0, end)), end)]
    ends += [m.end() for m in _ITEM.finditer(text)]
    return text[: max(ends)].rstrip() if ends else text
