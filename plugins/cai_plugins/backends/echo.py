"""A backend without a model: what comes out is a fixed function of the request."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence

from cai_core.types.backend import Capabilities, Completion, GenerateRequest, ScoreRequest, Scores
from cai_core.types.records import ModelInput, UnitFailure
from cai_plugins.backends.plugin import EchoOptions

CONTEXT = 100_000
_OPTIONS = re.compile(r"\(A\) \[\[\[(.*?)\]\]\]\s*\(B\) \[\[\[(.*?)\]\]\]", re.DOTALL)


class EchoBackend:
    """Scripted answers and scores; equal requests give equal results, bit by bit, in any order and batch.

    A "token" is a word here. Which requests fail is decided by their ids alone.
    """

    capabilities = Capabilities(generate=True, score=True, prefix_reuse=False, live_weights=False)
    context_length = CONTEXT

    def __init__(self, options: EchoOptions) -> None:
        self.options = options

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        """The reply, or the last turn again, cut to ``max_new_tokens`` words and at stop strings."""
        for request in requests:
            if self.options.delay_s:
                time.sleep(self.options.delay_s)
            tokens_in = _words(_whole(request.input))
            if failure := self._failure(request.id) or _too_long(tokens_in + request.sampling.max_new_tokens):
                yield Completion(request.id, "", "error", tokens_in=tokens_in, failure=failure)
                continue
            reply = self.options.reply if self.options.reply is not None else "Reply {seed}: {text}"
            # Two draws for one prompt have two seeds, so that pairs of answers differ.
            text = reply.replace("{seed}", str(request.seed % 10_000)).replace("{text}", _last_turn(request.input))
            for stop in request.input.stop:
                text = text.split(stop, 1)[0]
            words = text.split(" ")
            cut = len(words) > request.sampling.max_new_tokens
            text = " ".join(words[: request.sampling.max_new_tokens])
            yield Completion(
                request.id, text, "length" if cut else "stop", tokens_in=tokens_in, tokens_out=_words(text)
            )

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Scores]:
        """Log-probabilities according to ``bias``; over the continuations they sum to less than 1."""
        for request in requests:
            if self.options.delay_s:
                time.sleep(self.options.delay_s)
            whole = _whole(request.input)
            if failure := self._failure(request.id) or _too_long(_words(whole)):
                yield Scores(request.id, (), (), tokens_in=_words(whole), failure=failure)
                continue
            yield Scores(
                request.id,
                tuple(self._logprob(whole, request.continuations, i) for i in range(len(request.continuations))),
                tuple(_words(continuation) for continuation in request.continuations),
                tokens_in=_words(whole),
            )

    def _logprob(self, text: str, continuations: Sequence[str], index: int) -> float:
        favoured, other, even = -0.25, -2.5, -1.0
        if self.options.bias == "first":
            return favoured if index == 0 else other
        if self.options.bias == "longer":
            shown = _OPTIONS.findall(text)
            # Few-shot examples come before the comparison in question.
            lengths = [len(part) for part in (shown[-1] if shown else continuations)]
            if index >= len(lengths) or lengths.count(max(lengths)) > 1:
                return even
            return favoured if lengths[index] == max(lengths) else other
        hashed = hashlib.sha256(f"{text}\0{continuations[index]}".encode("utf-8", "surrogatepass")).digest()
        return -0.75 - 3 * int.from_bytes(hashed[:6], "big") / 2**48

    def _failure(self, id: str) -> UnitFailure | None:
        every = self.options.fail_every
        if every and int.from_bytes(hashlib.sha256(id.encode()).digest()[:6], "big") % every == 0:
            return UnitFailure("infra", "the echo backend fails this request, as its option fail_every asks")
        return None

    def update_weights(self, version: int) -> None:
        """There are no weights."""
        raise NotImplementedError("the echo backend has no weights")

    def close(self) -> None:
        """Nothing to free."""


def _whole(model_input: ModelInput) -> str:
    turns = "\n".join(message.content for message in model_input.messages)
    return (turns or model_input.text) + model_input.prefill


def _last_turn(model_input: ModelInput) -> str:
    if model_input.messages:
        return model_input.messages[-1].content
    human = model_input.text.rsplit("\n\nHuman:", 1)[-1]
    return human.split("\n\n", 1)[0].strip()


def _too_long(words: int) -> UnitFailure | None:
    return UnitFailure("too_long", f"{words} words; {CONTEXT} have room") if words > CONTEXT else None


def _words(text: str) -> int:
    return len(text.split())
