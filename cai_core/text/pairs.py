"""Pairs of answers from a file of JSON lines, in the forms that people have them."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from cai_core.errors import UserError
from cai_core.text.transcripts import parse_transcript
from cai_core.types.records import Conversation, Message, conversation

log = logging.getLogger(__name__)
MAX_LINE_BYTES = 10_000_000  # our choice: a line is a conversation, not a library


# The authors' evaluations (their repository ConstitutionalHarmlessnessPaper) are finished multiple-choice prompts.
_CHOICE = re.compile(
    r"\s*Consider the following conversation between a human and an assistant:(?P<turns>\n\nHuman:.*?)\n\n\n"
    r"[^\n]* Options:\n \(A\) "
    r"(?:\[\[\[(?P<a>.*?)\]\]\]\n \(B\) \[\[\[(?P<b>.*)\]\]\]|(?P<bare_a>.*?)\n \(B\) (?P<bare_b>.*?))"
    r"(?:\n\nThe answer is:)?\s*",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one conversation. ``p_a``: a person's probability that A is better, None where nobody said;
    ``category``: what kind of pair the file says that it is.

    source, weight: what the row says of where it comes from and how much it counts. failure: why there is nothing to
    compare; then the prompt is empty, and ``a`` and ``b`` are what stood there.
    """

    id: str
    prompt: Conversation
    a: str
    b: str
    p_a: float | None
    line: int
    category: str = "all"
    source: str = ""
    weight: float = 1.0
    failure: str = ""


def read_pairs(path: Path, limit: int | None = None) -> list[Pair]:
    """The pairs of a ``.jsonl`` or ``.jsonl.gz`` file, in its order.

    A row has ``prompt`` (text, a transcript with "\\n\\nHuman:", or a list of turns) and two answers: ``a`` and ``b``
    with ``p_a`` in [0, 1] or without, or ``chosen`` and ``rejected`` (also ``better`` and ``worse``), which are A and
    B with the probability ``p_chosen`` that ``cai export`` writes (or ``p_a``), else with p_a = 1. Answers are texts or
    lists of turns that end with the answer. Without ``prompt``, ``chosen`` and ``rejected`` are whole transcripts as in
    hh-rlhf. ``corrects`` and ``incorrects`` with a finished multiple-choice ``prompt`` are the form of the paper's
    evaluations; alone, the transcripts ``text_correct`` and ``text_incorrect`` are ``chosen`` and ``rejected``. Ids are
    made from the content where there is none.
    ``source`` (text) and ``weight`` (a number above 0) may stand in any row. Two transcripts that part before their
    last answers, as a few in hh-rlhf do, are a pair with a ``failure``.
    Raises ``UserError`` with file and line on anything else, and where there is no pair.
    """
    found: list[Pair] = []
    seen: Counter[str] = Counter()
    given: dict[str, int] = {}
    hint = 'for example {"prompt": "...", "a": "...", "b": "..."}'
    for number, row in json_lines(path, hint):
        where = f"{path} line {number}"
        try:
            pair = _pair(row, number)
        except ValueError as error:
            raise UserError(str(error), where=where, hint=hint) from error
        if "id" in row:
            if pair.id in given:
                raise UserError(
                    f"the id {pair.id!r} is in line {given[pair.id]} too", where=where, hint="ids are unique"
                )
            given[pair.id] = number
        else:
            seen[pair.id] += 1
            if seen[pair.id] > 1:
                pair = replace(pair, id=f"{pair.id}-{seen[pair.id]}")
        found.append(pair)
        if limit and len(found) == limit:
            break
    if not found:
        raise UserError("the file has no pair", where=str(path))
    if all(pair.failure for pair in found):
        raise UserError(found[0].failure, where=f"{path} line {found[0].line}", hint="no line of the file has a pair")
    return found


def labelled_pairs(path: Path) -> list[Pair]:
    """The pairs of a file for those who need a label with each, as ``read_pairs`` gives them.

    Pairs with a ``failure`` are left out, and their number is warned of, which a stage keeps among its notes. Raises
    ``UserError`` with file and line where a pair has no label.
    """
    found = read_pairs(path)
    for pair in found:
        if pair.p_a is None and not pair.failure:
            raise UserError(
                "this pair has no label",
                where=f"{path} line {pair.line}",
                hint="give `p_a` in [0, 1], or `chosen` and `rejected` in place of `a` and `b`",
            )
    if said := left_out([pair.failure for pair in found]):
        log.warning("%s: %s", path.name, said)
    return [pair for pair in found if not pair.failure]


def left_out(reasons: Sequence[str]) -> str:
    """How many pairs are left out, in words; ``reasons``: one for each pair of the file, empty where it stays."""
    counts = Counter(filter(None, reasons))
    return "; ".join(f"{n} of {len(reasons)} pairs left out: {reason}" for reason, n in sorted(counts.items()))


def json_lines(path: Path, hint: str = "") -> Iterator[tuple[int, Any]]:
    """Line number and value of each line of a ``.jsonl`` or ``.jsonl.gz`` file that is not blank.

    Raises ``UserError`` with file and line on what is not JSON in UTF-8, and on a line of more than 10 MB.
    """
    try:
        with _open(path) as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path} line {number}"
                if len(raw) > MAX_LINE_BYTES:
                    raise UserError(f"the line is longer than {MAX_LINE_BYTES:,} bytes", where=where)
                if not raw.strip():
                    continue
                try:
                    row = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    problem = "not JSON in UTF-8" if isinstance(error, (UnicodeError, json.JSONDecodeError)) else error
                    raise UserError(str(problem), where=where, hint=hint) from error
                yield number, row
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz that is cut short, and a damaged one
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the file cannot be read: {reason}", where=str(path)) from error


def _open(path: Path) -> gzip.GzipFile | IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _pair(row: Any, number: int) -> Pair:
    if not isinstance(row, Mapping):
        raise ValueError("not a JSON object")
    if {"corrects", "incorrects"} <= set(row):
        row = _choice(row)
    elif {"text_correct", "text_incorrect"} <= set(row) and "prompt" not in row:
        row = {**row, "chosen": row["text_correct"], "rejected": row["text_incorrect"]}
    names = next((n for n in (("a", "b"), ("chosen", "rejected"), ("better", "worse")) if set(n) <= set(row)), None)
    if names is None:
        raise ValueError("the row has neither `a` and `b` nor `chosen` and `rejected` (or `better` and `worse`)")
    sides = [row[name] for name in names]
    failure = ""
    if "prompt" in row:
        prompt = _prompt(row["prompt"])
        a, b = (_answer(side, prompt) for side in sides)
    elif names == ("chosen", "rejected"):
        prompt, a, b, failure = _transcripts(*sides)
    else:
        raise ValueError("the row has no `prompt`")
    p_a = _p_a(row, ordered=names != ("a", "b"))
    identifier = row.get("id")
    if identifier is None:
        content = json.dumps([[m.as_dict() for m in prompt], a, b]).encode()
        identifier = hashlib.sha256(content).hexdigest()[:16]
    elif isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
        raise ValueError("`id` must be a text or a whole number")
    category = str(row.get("category") or "all")
    source, weight = row.get("source") or "", row.get("weight")
    if not isinstance(source, str):
        raise ValueError("`source` must be a text")
    for text in (str(identifier), category, source, a, b, *(m.content for m in prompt)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("the text holds a lone surrogate (half of a \\u pair)") from error
    label = None if failure else p_a
    return Pair(str(identifier), prompt, a, b, label, number, category, source, _weight(weight), failure)


def _p_a(row: Mapping[str, Any], *, ordered: bool) -> float | None:
    """``ordered``: the names of the answers say which is the better one, so that A is the chosen one."""
    given: dict[str, float] = {}
    for key in ("p_a", "p_chosen"):
        p = row.get(key)
        if p is None:
            continue
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
            raise ValueError(f"`{key}` is {p!r}; it must be a probability in [0, 1]")
        given[key] = float(p)
    if not ordered:
        if "p_chosen" in given and "p_a" not in given:
            raise ValueError("`p_chosen` stands beside `a` and `b`, and nothing says which of them was chosen")
        return given.get("p_a")
    if len(set(given.values())) > 1:
        raise ValueError(f"`p_a` is {given['p_a']} and `p_chosen` {given['p_chosen']}: A is the chosen answer here")
    return next(iter(given.values()), 1.0)


def _weight(given: Any) -> float:
    if given is None:
        return 1.0
    try:
        weight = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else 0.0
    except OverflowError:  # a whole number of hundreds of digits
        weight = math.inf
    if not 0 < weight < math.inf:
        raise ValueError(f"`weight` is {given!r:.40}; it must be a number above 0")
    return weight


def _choice(row: Mapping[str, Any]) -> dict[str, Any]:
    """A multiple choice of the paper as ``prompt``, ``a``, ``b`` and ``p_a``."""
    found = _CHOICE.fullmatch(row["prompt"]) if isinstance(row.get("prompt"), str) else None
    if found is None:
        raise ValueError("`prompt` holds no conversation between a human and an assistant with options (A) and (B)")
    letters = []
    for key in ("corrects", "incorrects"):
        given = row[key] if isinstance(row[key], list) else [row[key]]
        letters.append({str(value).strip().strip("()") for value in given})
    if letters not in ([{"A"}, {"B"}], [{"B"}, {"A"}]):
        raise ValueError("`corrects` must be one of (A) and (B), and `incorrects` the other")
    a, b = (found[key] if found["a"] is not None else found[f"bare_{key}"] for key in ("a", "b"))
    extra = {key: row[key] for key in ("id", "category") if key in row}
    return {**extra, "prompt": found["turns"], "a": a, "b": b, "p_a": float(letters[0] == {"A"})}


def _prompt(given: Any) -> Conversation:
    if isinstance(given, str):
        if not given.strip():
            raise ValueError("`prompt` is empty")
        if not given.startswith("\n\nHuman:"):
            return (Message("user", given),)
        turns = parse_transcript(given)
        # "\n\nAssistant:" at the end only opens the answer.
        turns = turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content.strip() else turns
    else:
        turns = _turns(given, "prompt")
    if not turns or turns[-1].role != "user":
        raise ValueError("the last turn of `prompt` must be the user's")
    return turns


def _answer(given: Any, prompt: Conversation) -> str:
    if isinstance(given, str):
        return given
    turns = _turns(given, "an answer")
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise ValueError("an answer is a text or one turn of the assistant")
    return turns[0].content


def _turns(given: Any, name: str) -> Conversation:
    if not isinstance(given, Sequence) or not all(
        isinstance(turn, Mapping) and isinstance(turn.get("content"), str) and "role" in turn for turn in given
    ):
        raise ValueError(f'`{name}` is neither a text nor a list of {{"role": ..., "content": text}}')
    return conversation(given)


def _transcripts(chosen: Any, rejected: Any) -> tuple[Conversation, str, str, str]:
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise ValueError("the row has no `prompt`")
    one, other = parse_transcript(chosen), parse_transcript(rejected)
    if len(one) < 2 or len(one) != len(other) or one[:-1] != other[:-1] or one[-1].role != "assistant":
        return (), chosen, rejected, "`chosen` and `rejected` are not one conversation with two last answers"
    return one[:-1], one[-1].content, other[-1].content, ""
