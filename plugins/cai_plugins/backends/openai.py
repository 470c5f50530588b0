"""Any server that speaks the OpenAI protocol: vLLM, SGLang, llama.cpp, hosted ones.

Calls run side by side on an event loop of their own thread. How many is adapted: halved when the server says that it
is too many (429, 503), and raised again with every success. A call that fails is tried again after a pause that
grows, with jitter so that not all come back at once. A unit gives up when its tries or its time are used up and the
server answers others; while the server answers nobody, units wait, and after a while the stage stops: rows of a dead
server would stay for ever. Keys come from the environment and are written nowhere; redirects are not followed, since
a key goes with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp

from cai_core.errors import CAIError, EnvironmentProblem, UserError
from cai_core.types.backend import Capabilities, Completion, GenerateRequest, ScoreRequest, Scores
from cai_core.types.records import ErrorKind, ModelInput, UnitFailure
from cai_plugins.backends.plugin import OpenAIOptions

SERVED = "server:"
MAX_BODY = 16 * 1024 * 1024
MAX_STOPS = 4  # what the protocol allows; the rest is cut here
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
UNKNOWN_CONTEXT = 1 << 30
# Words for "the input is too long" in the answers of vLLM, SGLang, llama.cpp and OpenAI.
TOO_LONG = ("context length", "context_length", "maximum context", "too long", "context size", "max_model_len")

Request = TypeVar("Request", GenerateRequest, ScoreRequest)
Result = TypeVar("Result", Completion, Scores)


class _Failed(Exception):
    """A unit that has no result, with its reason."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.failure = UnitFailure(kind, message)


class _TryAgain(Exception):
    """A call that may do better later. ``busy``: the server has too much to do; ``after``: seconds that it asks for."""

    def __init__(self, reason: str, *, busy: bool = False, after: float = 0.0) -> None:
        super().__init__(reason)
        self.busy = busy
        self.after = after


class OpenAIBackend:
    """See ``Backend``. Seeds are sent; whether the same seed gives the same text is the server's affair."""

    capabilities = Capabilities(generate=True, score=True, prefix_reuse=True, live_weights=False)

    def __init__(self, options: OpenAIOptions) -> None:
        self.options = options
        self.model = options.model.removeprefix(SERVED)
        if not self.model:
            raise UserError("the backend was given no model", hint="set a model under `models:`, as server:NAME")
        self._key = os.environ.get(options.api_key_env, "") if options.api_key_env else ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: aiohttp.ClientSession | None = None
        self._gate = _Gate(options.concurrency)
        self._context_length = 0
        self._tokenizer: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    # the protocol of backends --------------------------------------------------------------------------------------

    @property
    def context_length(self) -> int:
        """What the server says of the model; a large number where it says nothing."""
        self._open()
        return self._context_length

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        """One completion per request; see ``Backend``."""

        def failed(request: GenerateRequest, failure: UnitFailure) -> Completion:
            return Completion(request.id, "", "error", failure=failure)

        yield from self._side_by_side(requests, self._complete, failed)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Scores]:
        """From the log-probabilities of the prompt (``echo``); see ``Backend``. Raises ``CAIError`` where the server
        gives none, and for conversations without the option ``tokenizer``."""

        def failed(request: ScoreRequest, failure: UnitFailure) -> Scores:
            return Scores(request.id, (), (), failure=failure)

        yield from self._side_by_side(requests, self._score, failed)

    def update_weights(self, version: int) -> None:
        """The server's weights are its own."""
        raise NotImplementedError("the openai backend has no live weights")

    def close(self) -> None:
        """End the calls under way and the thread."""
        if self._loop is None:
            return
        loop, thread = self._loop, self._thread
        assert thread is not None

        async def end() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._session is not None:
                await self._session.close()

        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        self._loop = self._thread = self._session = None

    # side by side --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._loop is not None:
            return
        if self.options.tokenizer:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.options.tokenizer)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="openai-backend")
        self._thread.start()
        try:
            self._context_length = asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> int:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self.options.timeout_s),
            auto_decompress=True,
        )
        try:
            listed = await self._until_done(lambda: self._get("/models"), self._gate.begin())
        except _Failed:
            return UNKNOWN_CONTEXT  # not every server lists its models
        entries = [entry for entry in listed.get("data") or [] if isinstance(entry, dict)]
        names = [str(entry.get("id")) for entry in entries]
        if names and self.model not in names:
            raise UserError(
                f"the server has no model {self.model!r}",
                where=self.options.base_url,
                hint=f"it has {', '.join(names[:10])}; write `server:NAME` under `models:`",
            )
        for entry in entries:
            if entry.get("id") == self.model and isinstance(entry.get("max_model_len"), int):
                return int(entry["max_model_len"])
        return UNKNOWN_CONTEXT

    def _side_by_side(
        self,
        requests: Iterable[Request],
        work: Callable[[Request, float], Awaitable[Result]],
        failed: Callable[[Request, UnitFailure], Result],
    ) -> Iterator[Result]:
        self._open()
        assert self._loop is not None
        done: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()

        async def one(request: Request) -> None:
            try:
                done.put(await work(request, self._gate.begin()))
            except _Failed as error:
                done.put(failed(request, error.failure))
            except BaseException as error:
                done.put(error)

        def start(request: Request) -> None:
            task = asyncio.ensure_future(one(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        source, running = iter(requests), 0
        # A few wait at the gate, so that a place that becomes free is taken at once.
        most = self.options.concurrency + self.options.concurrency // 8
        while True:
            while running < most and (request := next(source, None)) is not None:
                self._loop.call_soon_threadsafe(start, request)
                running += 1
            if not running:
                return
            result = done.get()
            running -= 1
            if isinstance(result, BaseException):
                raise result
            yield result

    async def _until_done(self, call: Callable[[], Awaitable[Any]], began: float) -> Any:
        """``call`` until it succeeds, with pauses. Raises ``_Failed`` when tries or time are used up, and
        ``EnvironmentProblem`` when the server has answered nobody for ``patience_s``."""
        options, gate = self.options, self._gate
        tries, first_failure = 0, 0.0
        while True:
            await gate.enter()
            try:
                result = await call()
            except _TryAgain as error:
                gate.leave(busy=error.busy)
                tries += 1
                first_failure = first_failure or time.monotonic()
                if gate.silent_for() > options.patience_s:
                    raise EnvironmentProblem(
                        f"the server has answered no call for {options.patience_s:g} s: {error}",
                        where=options.base_url,
                        hint="see whether it runs, then give the same command again: all that is finished is kept",
                    ) from error
                late = time.monotonic() - began > options.deadline_s
                if (tries > options.retries or late) and gate.answered_since(first_failure):
                    reason = f"no answer in {options.deadline_s:g} s" if late else f"failed {tries} times"
                    raise _Failed("infra", f"{reason}: {error}") from error
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries - 1, 8)) * random.uniform(0.5, 1.5)
                pause = min(max(pause, error.after), max(options.patience_s, error.after))
                if error.busy and error.after:
                    gate.rest(error.after)
                await asyncio.sleep(pause)
            except BaseException:
                gate.leave(busy=False)
                raise
            else:
                gate.leave(busy=False, success=True)
                return result

    # calls ---------------------------------------------------------------------------------------------------------

    async def _get(self, path: str) -> Any:
        return await self._call("GET", path, None)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        assert self._session is not None
        try:
            async with self._session.request(
                method, self.options.base_url.rstrip("/") + path, json=body, allow_redirects=False
            ) as response:
                raw = await response.content.read(MAX_BODY + 1)
                while len(raw) <= MAX_BODY and (more := await response.content.read(MAX_BODY)):
                    raw += more
                status, after = response.status, _retry_after(response.headers.get("Retry-After"))
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise _TryAgain(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        if len(raw) > MAX_BODY:
            raise _Failed("infra", f"the server's answer is larger than {MAX_BODY:,} bytes")
        text = raw.decode("utf-8", "replace")
        if status == 200:
            try:
                return json.loads(text)
            except (ValueError, RecursionError) as error:
                raise _TryAgain(f"the server's answer is not JSON: {text[:80]!r}") from error
        self._refuse(status, text, after, path)

    def _refuse(self, status: int, text: str, after: float, path: str) -> None:
        reason = f"status {status}: {_message(text)}"
        if status in (429, 503, 529):
            raise _TryAgain(reason, busy=True, after=after)
        if status in (408, 409, 425) or status >= 500:
            raise _TryAgain(reason, after=after)
        if status in (401, 403):
            name = self.options.api_key_env
            raise UserError(
                f"the server refuses the key: {reason}" if self._key else f"the server wants a key: {reason}",
                where=self.options.base_url,
                hint=f"put it into the environment variable {name}" if name else "set `api_key_env`",
            )
        if status == 404 and path != "/models":
            raise UserError(
                f"the server does not know {path} or the model {self.model!r}: {reason}",
                where=self.options.base_url,
                hint="`base_url` usually ends on /v1; raw-text templates need /completions, conversations "
                "/chat/completions",
            )
        if any(words in text.lower() for words in TOO_LONG):
            raise _Failed("too_long", reason)
        raise _Failed("infra", reason)

    async def _complete(self, request: GenerateRequest, began: float) -> Completion:
        path, body = self._body(request.input)
        sampling = request.sampling
        body |= {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed & 0x7FFFFFFF,
        }
        if request.input.stop:
            body["stop"] = list(request.input.stop[:MAX_STOPS])

        async def call() -> Completion:
            return self._read(request, await self._call("POST", path, body))

        return await self._until_done(call, began)

    def _body(self, given: ModelInput) -> tuple[str, dict[str, Any]]:
        if not given.messages or self._tokenizer is not None:
            return "/completions", {"model": self.model, "prompt": self._text(given), **self._rendered(given)}
        messages = [{"role": m.role, "content": _encodable(m.content)} for m in given.messages]
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if given.prefill and self.options.prefill == "continue":
            messages.append({"role": "assistant", "content": given.prefill})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        elif given.prefill:
            messages[-1]["content"] += f"\n\nBegin your answer with these words: {given.prefill}"
        return "/chat/completions", body

    def _text(self, given: ModelInput) -> str:
        if not given.messages:
            return _encodable(given.text + given.prefill)
        turns = [{"role": m.role, "content": _encodable(m.content)} for m in given.messages]
        text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return str(text) + _encodable(given.prefill)

    def _rendered(self, given: ModelInput) -> dict[str, Any]:
        # The chat template has put the special tokens in already.
        return {"add_special_tokens": False} if given.messages else {}

    def _read(self, request: GenerateRequest, answer: Any) -> Completion:
        """Strictly: what is not in the protocol's form is an answer cut short or somebody else's."""
        try:
            choice = answer["choices"][0]
            text = choice["text"] if "text" in choice else choice["message"]["content"]
            reason = choice.get("finish_reason")
            refusal = (choice.get("message") or {}).get("refusal")
            usage = answer.get("usage") or {}
            counts = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise _TryAgain(f"the server's answer has not the form of a completion: {str(answer)[:80]!r}") from error
        if refusal or reason == "content_filter":
            raise _Failed("refusal", f"the server's filter refused: {str(refusal or reason)[:200]}")
        if text is not None and not isinstance(text, str):
            raise _TryAgain("the server's answer has no text")
        text = text or ""
        given = request.input
        if given.prefill and self.options.prefill == "ask" and given.messages and self._tokenizer is None:
            text = text.lstrip().removeprefix(given.prefill)
        cuts = [at for stop in given.stop if (at := text.find(stop)) >= 0]
        if cuts:
            text, reason = text[: min(cuts)], "stop"
        return Completion(
            request.id, text, "length" if reason == "length" else "stop", tokens_in=counts[0], tokens_out=counts[1]
        )

    async def _score(self, request: ScoreRequest, began: float) -> Scores:
        if request.input.messages and self._tokenizer is None:
            raise CAIError(
                "a server scores text, and this is a conversation",
                where=self.options.base_url,
                hint="set `tokenizer` of the backend to the model's folder or hub id, or use a raw-text format",
            )
        text = self._text(request.input)
        extra = self._rendered(request.input)
        found = [await self._logprob(text, continuation, extra, began) for continuation in request.continuations]
        return Scores(
            request.id,
            tuple(value for value, _, _ in found),
            tuple(count for _, count, _ in found),
            tokens_in=found[0][2] - found[0][1] if found else 0,
        )

    async def _logprob(
        self, text: str, continuation: str, extra: dict[str, Any], began: float
    ) -> tuple[float, int, int]:
        """(log-probability, tokens, tokens in all) of ``continuation`` after ``text``."""
        body = {
            "model": self.model, "prompt": text + continuation, "max_tokens": 1, "temperature": 0, "logprobs": 1,
            "echo": True, **extra,
        }  # fmt: skip

        async def call() -> tuple[float, int, int]:
            answer = await self._call("POST", "/completions", body)
            try:
                logprobs = answer["choices"][0].get("logprobs")
                if not logprobs or not logprobs.get("text_offset"):
                    raise CAIError(
                        "the server gives no log-probabilities of the prompt",
                        where=self.options.base_url,
                        hint="it must support `echo` with `logprobs` on /completions, as vLLM does; or use a labeler "
                        "that asks in words",
                    )
                offsets, values = logprobs["text_offset"], logprobs["token_logprobs"]
                end = len(text) + len(continuation)
                places = [i for i, at in enumerate(offsets) if len(text) <= at < end]
                if not places or offsets[places[0]] != len(text):
                    raise _Failed("infra", f"no token begins where {continuation!r} does, so it cannot be scored alone")
                return sum(float(values[i]) for i in places), len(places), places[-1] + 1
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise _TryAgain(f"the server's answer has not the form of a completion: {error}") from error

        return await self._until_done(call, began)


class _Gate:
    """How many calls may run, and what is known of the server. Lives on the event loop."""

    def __init__(self, most: int) -> None:
        self.most = float(most)
        self.limit = float(most)
        self.running = 0
        self.waiting: asyncio.Queue[None] | None = None
        self.last_answer = time.monotonic()
        self.last_cut = 0.0
        self.resting_until = 0.0
        self._freed = asyncio.Event()

    def begin(self) -> float:
        """The present, for deadlines; a server that nobody asked for a while is not silent."""
        now = time.monotonic()
        if not self.running:
            self.last_answer = max(self.last_answer, now)
        return now

    async def enter(self) -> None:
        """Wait for a place."""
        while True:
            rest = self.resting_until - time.monotonic()
            if rest > 0:
                await asyncio.sleep(rest)
            elif self.running < max(1, int(self.limit)):
                self.running += 1
                return
            else:
                self._freed.clear()
                await self._freed.wait()

    def leave(self, *, busy: bool, success: bool = False) -> None:
        """Free the place; adapt the limit: additive increase, multiplicative decrease, once a second at most."""
        self.running -= 1
        now = time.monotonic()
        if success:
            self.last_answer = now
            self.limit = min(self.most, self.limit + 1 / max(1.0, self.limit))
        elif busy and now - self.last_cut > 1.0:
            self.last_cut = now
            self.limit = max(1.0, self.limit / 2)
        self._freed.set()

    def rest(self, seconds: float) -> None:
        """No call for so long: the server asked for it."""
        self.resting_until = max(self.resting_until, time.monotonic() + min(seconds, 3600.0))

    def silent_for(self) -> float:
        """Seconds since the server last gave an answer that was one, without the time it asked us to wait."""
        return time.monotonic() - max(self.last_answer, self.resting_until)

    def answered_since(self, moment: float) -> bool:
        """Whether it has answered anybody since."""
        return self.last_answer > moment


def _retry_after(value: str | None) -> float:
    """Seconds from a Retry-After header, which holds seconds or a date; 0 where there is none."""
    if not value:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _message(text: str) -> str:
    """The server's own words, in whichever form it gives them; at most 200 characters."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError):
        data = json.loads(text)
        error = data.get("error", data)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:200]
    return " ".join(text.split())[:200] or "no text"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
