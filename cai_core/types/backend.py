"""Backends: text in, text or log-probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from cai_core.types.records import ModelInput, UnitFailure


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens. ``temperature=0`` is greedy. The paper samples at T = 1 throughout (section 2)."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One completion. Its random numbers come from ``seed`` alone, whatever else is in the batch.

    shared_prefix: number of leading messages that other requests share (a hint; results never depend on it).
    parent: id of the request whose input this one extends (a hint likewise).
    """

    id: str
    input: ModelInput
    sampling: Sampling
    seed: int
    shared_prefix: int = 0
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a ``GenerateRequest``: text without special tokens, prefill or stop string; or a failure."""

    id: str
    text: str
    finish: Literal["stop", "length", "error"]
    tokens_in: int = 0
    tokens_out: int = 0
    failure: UnitFailure | None = None


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Log-probabilities of each continuation after ``input`` (and its prefill)."""

    id: str
    input: ModelInput
    continuations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """``logprobs[i]``: sum over the tokens of ``continuations[i]`` of log P(token | before), in nats; ``tokens[i]``
    their number. Or a failure, with both empty."""

    id: str
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    tokens_in: int = 0
    failure: UnitFailure | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do. ``live_weights``: ``update_weights`` works (rollouts of a policy under training)."""

    generate: bool = True
    score: bool = False
    prefix_reuse: bool = False
    live_weights: bool = False


class Backend(Protocol):
    """A model that can be asked.

    Order: exactly one result per request, in any order, as they finish; ``id`` says which.
    Shapes and units: tokens are the model's own; log-probabilities are natural (nats), summed over a continuation.
    Ownership: it is built in the worker process and closed by the pipeline; requests and results are immutable.
    Errors: an input that does not fit the context is a ``too_long`` failure of that request alone, a fault of machine
    or server an ``infra`` failure. Nothing is raised for a single request. ``UserError`` when there is no such model.
    Determinism: a result depends on its request alone, hints make no difference. It is the same bit for bit in the same
    batch on the same device with the same number of threads; another batch may round differently and so sample another
    text.
    """

    capabilities: Capabilities

    @property
    def context_length(self) -> int:
        """Tokens that input and output may have together."""
        ...

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        """Yield one completion per request as they finish.

        ``requests`` may be an iterator that goes on while completions are yielded: what follows from a completion
        (its critique, say) is among the next, also where the iterator had come to an end before that. Take one when
        there is room for it; taking all at once is allowed.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Scores]:
        """Yield one score per request. Raises ``CAIError`` when the backend cannot score at all."""
        ...

    def update_weights(self, version: int) -> None:
        """Use the bound policy's weights of this version from now on. ``NotImplementedError`` where unsupported."""
        ...

    def close(self) -> None:
        """Free memory, files and sockets. May be called twice."""
        ...


@runtime_checkable
class ChecksScores(Protocol):
    """What a backend with a tokenizer at hand may offer besides: a proof that it scores what is meant."""

    def score_problem(self, request: ScoreRequest) -> str:
        """Empty where each continuation is scored on the very tokens that the model reads when it stands after the
        input, and those tokens are that text again; else what differs, for people."""
        ...
