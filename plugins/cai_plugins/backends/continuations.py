"""Continuations as tokens, and the proof that these are the ones the model reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cai_core.errors import CAIError
from cai_core.types.backend import ScoreRequest
from cai_core.types.records import ModelInput


def encode_continuations(
    tokenizer: Any, plain: Callable[[str], str], request: ScoreRequest, where: str
) -> list[list[int]]:
    """Each continuation on its own, after ``plain``. Raises ``CAIError`` for one without tokens, and for two different
    ones with the same."""
    texts = request.continuations
    encoded = [list(tokenizer(plain(text), add_special_tokens=False)["input_ids"]) for text in texts]
    for i, ids in enumerate(encoded):
        if not ids:
            raise CAIError(f"continuation {texts[i]!r} has no tokens", where=where)
        for j in range(i):
            if ids == encoded[j] and texts[i] != texts[j]:
                raise CAIError(
                    f"{texts[j]!r} and {texts[i]!r} have the same tokens, so this model cannot tell them apart",
                    where=where,
                    hint="use another model as judge",
                )
    return encoded


def score_problem(
    tokenizer: Any, request: ScoreRequest, encode: Callable[[ModelInput], list[int]], encoded: list[list[int]]
) -> str:
    """See ``ChecksScores``: ``encode`` gives the tokens of an input, ``encoded`` are those of the continuations."""
    before = encode(request.input)
    for text, own in zip(request.continuations, encoded, strict=True):
        whole = encode(replace(request.input, prefill=request.input.prefill + text))
        if whole != before + own:
            scored, read = (tokenizer.convert_ids_to_tokens(ids) for ids in (own, whole[len(before) :]))
            return f"{text!r} is scored as the tokens {scored}, and after the prompt it is read as {read}"
        back = tokenizer.decode(whole, clean_up_tokenization_spaces=False)
        if not back.endswith(text):
            return f"{text!r} is not what its tokens stand for: they are {back[-len(text) :]!r}"
    return ""
