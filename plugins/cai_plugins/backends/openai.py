"""Any server that speaks the OpenAI protocol: vLLM, SGLang, llama.cpp, hosted ones.

Calls run side by side on an event loop of their own thread. How many is adapted: halved when the server says that it
is too many (429, 503), and raised again with every success. A call that fails is tried again after a pause that
grows, with jitter so that not all come back at once. A unit gives up when its tries or its time are used up and the
server answers others; while the server answers nobody, units wait, and after a while the stage stops: rows of a dead
server would stay for ever. For the same reason, before a unit is given up the server must have answered somebody since
it began to fail: another unit, or a short call of the same form. Keys come from the environment; messages that repeat
one have ``[key]`` in its place. Redirects are not followed, since a key goes with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import math
import os
import queue
import random
import re
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import aiohttp

from cai_core.errors import CAIError, EnvironmentProblem, UserError
from cai_core.types.backend import Capabilities, Completion, GenerateRequest, ScoreRequest, Scores
from cai_core.types.records import ErrorKind, ModelInput, UnitFailure
from cai_plugins.backends.continuations import encode_continuations, score_problem
from cai_plugins.backends.plugin import OpenAIOptions

SERVED = "server:"
MAX_BODY = 16 * 1024 * 1024
MAX_STOPS = 4  # what the protocol allows, and vLLM enforces; the rest is cut here
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
UNKNOWN_CONTEXT = 1 << 30
# Our choice. A shorter key (EMPTY, none, token) is a local server's placeholder: no secret, and often a word, which
# masking would take out of messages.
SHORTEST_SECRET = 6
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]*(?=@)")  # user name and password of a proxy
# vLLM takes defaults for these from the model's generation_config.json unless a call names them; other servers may not
# know the names.
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
# Words for "the input is too long" in the answers of vLLM, SGLang, llama.cpp and OpenAI.
TOO_LONG = ("context length", "context_length", "maximum context", "too long", "context size", "max_model_len")

Request = TypeVar("Request", GenerateRequest, ScoreRequest)
Result = TypeVar("Result", Completion, Scores)
Answer = TypeVar("Answer")


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
        self._key = _key(options.api_key_env)
        self._proxy = _proxy(options.base_url)
        secrets = (self._key, unquote(urlsplit(self._proxy or "").password or ""))
        self._secrets = tuple(_spellings(secret) for secret in secrets if len(secret) >= SHORTEST_SECRET)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: aiohttp.ClientSession | None = None
        self._gate = _Gate(options.concurrency)
        self._context_length = 0
        self._is_vllm = False
        self._tokenizer: Any = None
        self._specials: tuple[str, ...] = ()
        self._probing = asyncio.Lock()
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
        gives none, for conversations without the option ``tokenizer``, and with it when two continuations encode
        alike."""

        def failed(request: ScoreRequest, failure: UnitFailure) -> Scores:
            return Scores(request.id, (), (), failure=failure)

        yield from self._side_by_side(requests, self._score, failed)

    def score_problem(self, request: ScoreRequest) -> str:
        """See ``ChecksScores``. Empty without the option ``tokenizer``: then the server encodes input and continuation
        together, and where no token begins with the continuation ``score`` gives a failure."""
        if not self.options.tokenizer:
            return ""
        self._open()
        try:
            return score_problem(self._tokenizer, request, self._ids, self._continuations(request))
        except _Failed as error:
            return error.failure.message

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
            self._tokenizer = _tokenizer(self.options.tokenizer)
            self._specials = tuple(sorted(set(self._tokenizer.all_special_tokens), key=len, reverse=True))
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
            listed = await self._until_done(lambda: self._call("GET", "/models", None), self._gate.begin())
        except _Failed:
            return UNKNOWN_CONTEXT  # not every server lists its models
        data = listed.get("data") if isinstance(listed, dict) else None
        entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
        names = [str(entry.get("id")) for entry in entries]
        if names and self.model not in names:
            raise UserError(
                f"the server has no model {self.model!r}",
                where=self.options.base_url,
                hint=f"it has {self._hidden(', '.join(names[:10]))}; write `server:NAME` under `models:`",
            )
        self._is_vllm = any(entry.get("owned_by") == "vllm" for entry in entries)
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
        # A few wait at the gate, so that a place that becomes free is taken at once, before its answer is recorded.
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

    async def _until_done(
        self, call: Callable[[], Awaitable[Answer]], began: float, probe: tuple[str, dict[str, Any]] | None = None
    ) -> Answer:
        """``call`` until it succeeds, with pauses. Raises ``_Failed`` when tries or time are used up or trying again
        cannot help, and ``EnvironmentProblem`` when the server has answered nobody for ``patience_s``, or refuses even
        ``probe``: path and body of a short call of the same form."""
        options, gate = self.options, self._gate
        tries, pauses, first_failure = 0, 0, 0.0
        while True:
            await gate.enter()
            entered = time.monotonic()
            left = options.deadline_s - (entered - began)
            try:
                # A unit past its time is tried on only while the server answers nobody.
                async with asyncio.timeout(left if left > 0 else None):
                    result = await call()
            except (_TryAgain, TimeoutError) as error:
                busy, after = (error.busy, error.after) if isinstance(error, _TryAgain) else (False, 0.0)
                gate.leave(busy=busy)
                # What a server has no time for now says nothing of the unit: it is waited out until the deadline.
                tries, pauses = tries + (not busy), pauses + 1
                first_failure = first_failure or time.monotonic()
                if after > options.deadline_s:
                    raise EnvironmentProblem(
                        f"the server asks for a pause of {after:.0f} s: {error}",
                        where=options.base_url,
                        hint="give the same command again after that: all that is finished is kept",
                    ) from error
                late = time.monotonic() - began > options.deadline_s
                spent, silent = tries > options.retries or late, gate.silent_for() > options.patience_s
                if (spent or silent) and await self._answers_others(probe, first_failure):
                    if spent:
                        reason = f"no answer in {options.deadline_s:g} s" if late else f"failed {tries} times"
                        raise _Failed("infra", f"{reason}: {error or 'stalled'}") from error
                elif silent:
                    raise EnvironmentProblem(
                        f"the server has answered no call for {options.patience_s:g} s: {error or 'stalled'}",
                        where=options.base_url,
                        hint="see whether it runs, then give the same command again: all that is finished is kept",
                    ) from error
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(pauses - 1, 8)) * random.uniform(0.5, 1.5)
                pause = max(min(pause, options.patience_s), after)
                if after:
                    began += pause  # what the server asks for is not the unit's time
                if busy and after:
                    gate.rest(after)
                await asyncio.sleep(pause)
            except _Failed as error:
                gate.leave(busy=False)
                if error.failure.kind != "infra":
                    gate.answered()
                elif probe and not await self._answers_others(probe, entered):
                    raise EnvironmentProblem(
                        f"the server refuses every call: {error}",
                        where=options.base_url,
                        hint="it also refuses a short call of the same form; see which fields it supports, then give "
                        "the same command again",
                    ) from error
                raise
            except BaseException:
                gate.leave(busy=False)
                raise
            else:
                gate.leave(busy=False)
                gate.answered()
                return result

    async def _answers_others(self, probe: tuple[str, dict[str, Any]] | None, since: float) -> bool:
        """Whether the server has answered anybody since, or answers ``probe`` now."""
        async with self._probing:
            if self._gate.answered_since(since) or probe is None:
                return self._gate.answered_since(since)
            path, body = probe
            try:
                await self._call("POST", path, body)
            except (_TryAgain, _Failed):
                return False
            self._gate.answered()
            return True

    # calls ---------------------------------------------------------------------------------------------------------

    async def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        assert self._session is not None
        try:
            async with self._session.request(
                method, self.options.base_url.rstrip("/") + path, json=body, allow_redirects=False, proxy=self._proxy
            ) as response:
                raw = await response.content.read(MAX_BODY + 1)
                while len(raw) <= MAX_BODY and (more := await response.content.read(MAX_BODY)):
                    raw += more
                status, after = response.status, _retry_after(response.headers.get("Retry-After"))
                target = response.headers.get("Location", "")
        except aiohttp.ClientConnectorCertificateError as error:
            # Trying again cannot help: somebody must change the certificate or what this machine trusts.
            reason = getattr(error.certificate_error, "verify_message", "") or type(error.certificate_error).__name__
            raise EnvironmentProblem(
                f"the certificate of {error.host}:{error.port} is not trusted: {self._hidden(reason)[:200]}",
                where=self.options.base_url,
                hint="name a file with the certificate of its authority in the environment variable SSL_CERT_FILE, or "
                "mend the server's; then give the same command again: all that is finished is kept",
            ) from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            # Without its cause: a traceback would print what the error holds, the proxy's password, say.
            raise _TryAgain(self._hidden(f"{type(error).__name__}: {error}".rstrip(": "))) from None
        if len(raw) > MAX_BODY:
            raise _Failed("infra", f"the server's answer is larger than {MAX_BODY:,} bytes")
        text = raw.decode("utf-8", "replace")
        if 300 <= status < 400:
            raise UserError(
                f"the server redirects to {self._hidden(target.partition('?')[0])[:200] or 'nowhere'}",
                where=self.options.base_url,
                hint="redirects are not followed, since the key would go along; set `base_url` to where the API is",
            )
        if status == 200:
            try:
                answer = json.loads(text)
            except (ValueError, RecursionError):
                raise _TryAgain(f"the server's answer is not JSON: {self._hidden(text)[:80]!r}") from None
            if not isinstance(answer, dict) or not answer.get("error") or answer.get("choices"):
                return answer
            # Some proxies report failures so.
            code = answer["error"].get("code") if isinstance(answer["error"], dict) else None
            status = code if type(code) is int and 400 <= code < 600 else 500
        self._refuse(status, text, after, path)

    def _hidden(self, text: str) -> str:
        """Words of a server for a message, without keys: servers repeat what they were sent. To be called on decoded
        text, before it is cut. Answers are not touched: a key may look like a part of them."""
        text = IN_ADDRESS.sub("[key]", text)
        for secret in self._secrets:
            text = secret.sub("[key]", text)
        return text

    def _refuse(self, status: int, text: str, after: float, path: str) -> None:
        reason = f"status {status}: {self._hidden(_message(text))[:200]}"
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
        if self._is_vllm:
            body |= NEUTRAL
            if self._tokenizer is not None:
                # Any special token ends the text: after it comes another turn, which is not part of the answer.
                body["stop_token_ids"] = sorted(set(self._tokenizer.all_special_ids))
        if request.input.stop:
            body["stop"] = list(request.input.stop[:MAX_STOPS])

        async def call() -> Completion:
            return self._read(request, await self._call("POST", path, body))

        return await self._until_done(call, began, (path, _short(body)))

    def _body(self, given: ModelInput) -> tuple[str, dict[str, Any]]:
        if self._tokenizer is not None:
            return "/completions", {"model": self.model, "prompt": self._ids(given)}
        if not given.messages:
            return "/completions", {"model": self.model, "prompt": _encodable(given.text + given.prefill)}
        messages = [{"role": m.role, "content": _encodable(m.content)} for m in given.messages]
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if given.prefill and self.options.prefill == "continue":
            messages.append({"role": "assistant", "content": _encodable(given.prefill)})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        elif given.prefill:
            messages[-1]["content"] += f"\n\nBegin your answer with these words: {_encodable(given.prefill)}"
        return "/chat/completions", body

    def _ids(self, given: ModelInput) -> list[int]:
        """The tokens of an input, as the ``transformers`` backend has them: what is sent so needs no word with the
        server about special tokens."""
        prefill = self._plain(given.prefill)
        if not given.messages:
            return list(self._tokenizer(self._plain(given.text) + prefill)["input_ids"])
        if not self._tokenizer.chat_template:
            raise UserError(
                "this tokenizer has no chat template, so it cannot render a conversation",
                where=self.options.tokenizer,
                hint="use a raw-text template (critique_template: paper, labeler format: paper, reward format: text), "
                "or a chat model",
            )
        from jinja2.exceptions import TemplateError

        turns = [{"role": m.role, "content": self._plain(m.content)} for m in given.messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise _Failed("infra", f"the model's chat template refused the conversation: {error}") from error
        return list(self._tokenizer(text + prefill, add_special_tokens=False)["input_ids"])

    def _plain(self, text: str) -> str:
        # Text inside an input never becomes a special token.
        for special in self._specials:
            text = text.replace(special, f"{special[0]} {special[1:]}")
        return _encodable(text)

    def _read(self, request: GenerateRequest, answer: Any) -> Completion:
        """Strictly: what is not in the protocol's form is an answer cut short or somebody else's."""
        try:
            choice = answer["choices"][0]
            text = choice["text"] if "text" in choice else choice["message"]["content"]
            reason = choice.get("finish_reason")
            refusal = (choice.get("message") or {}).get("refusal")
            usage = answer.get("usage") or {}
            counts = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
            # Without its cause, which may hold words of the server.
            raise _TryAgain(
                f"the server's answer has not the form of a completion: {self._hidden(str(answer))[:80]!r}"
            ) from None
        if refusal or reason == "content_filter":
            raise _Failed("refusal", f"the server's filter refused: {self._hidden(str(refusal or reason))[:200]}")
        if reason in ("error", "abort"):
            raise _TryAgain(f"the server broke off: finish_reason {reason!r}")
        if text is None:
            raise _Failed(
                "unparseable", f"the server's answer has no text (finish_reason {self._hidden(repr(reason))[:80]})"
            )
        if not isinstance(text, str):
            raise _TryAgain("the server's answer has no text")
        text = _encodable(text)  # JSON can spell half a character
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
                hint="set `tokenizer` of the backend to the model's folder or hub id, or ask in raw text (`format: "
                "paper` of a labeler, `format: text` of a reward)",
            )
        texts = request.continuations
        if self._tokenizer is not None:
            before: list[int] | str = self._ids(request.input)
            encoded = self._continuations(request)
        else:
            before = _encodable(request.input.text + request.input.prefill)
            encoded = [[]] * len(texts)
        found = [await self._logprob(before, text, own, began) for text, own in zip(texts, encoded, strict=True)]
        return Scores(
            request.id,
            tuple(value for value, _, _ in found),
            tuple(count for _, count, _ in found),
            tokens_in=found[0][2] if found else 0,
        )

    def _continuations(self, request: ScoreRequest) -> list[list[int]]:
        return encode_continuations(self._tokenizer, self._plain, request, self.options.tokenizer)

    async def _logprob(
        self, before: list[int] | str, continuation: str, own: list[int], began: float
    ) -> tuple[float, int, int]:
        """(log-probability of ``continuation`` after ``before``, its tokens, the tokens before it). ``own``: what it
        is encoded as here, where ``before`` is tokens; empty where the server encodes."""
        prompt = before + _encodable(continuation) if isinstance(before, str) else before + own
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True,
        }  # fmt: skip

        async def call() -> tuple[float, int, int]:
            answer = await self._call("POST", "/completions", body)
            try:
                logprobs = answer["choices"][0].get("logprobs")
                if not logprobs or len(logprobs.get("tokens") or ()) < 2 or not logprobs.get("token_logprobs"):
                    raise CAIError(
                        "the server gives no log-probabilities of the prompt",
                        where=self.options.base_url,
                        hint="it must support `echo` with `logprobs` on /completions, as vLLM does; or use a labeler "
                        "that asks in words",
                    )
                tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
                end = int((answer.get("usage") or {}).get("prompt_tokens") or len(tokens) - 1)
                if not 0 < end <= len(tokens) == len(values) or (own and end != len(prompt)):
                    raise ValueError(f"{len(tokens)} tokens and {len(values)} values for a prompt of {end}")
                begin = end - len(own) if own else _where(tokens[:end], _encodable(continuation))
                if begin < 1:
                    raise _Failed(
                        "infra",
                        f"no token begins where {continuation!r} does, so it cannot be scored alone; the option "
                        "`tokenizer` of the backend prevents that",
                    )
                value = sum(float(values[i]) for i in range(begin, end))
                if not math.isfinite(value):
                    raise ValueError(f"the log-probability is {value}")
                return value, end - begin, begin
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise _TryAgain(
                    f"the server's answer has not the form of a completion: {self._hidden(str(error))[:200]}"
                ) from None

        return await self._until_done(call, began, ("/completions", _short(body)))


class _Gate:
    """How many calls may run, and what is known of the server. Lives on the event loop."""

    def __init__(self, most: int) -> None:
        self.most = float(most)
        self.limit = float(most)
        self.running = 0
        self.waiting: asyncio.Queue[None] | None = None
        self.last_answer = 0.0
        self.asked_since = time.monotonic()
        self.last_cut = 0.0
        self.resting_until = 0.0
        self._freed = asyncio.Event()

    def begin(self) -> float:
        """The present, for deadlines; a server that nobody asked for a while is not silent."""
        now = time.monotonic()
        if not self.running:
            self.asked_since = now
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

    def answered(self) -> None:
        """The server answered: one more call at a time for every round of them."""
        self.last_answer = time.monotonic()
        self.limit = min(self.most, self.limit + 1 / max(1.0, self.limit))

    def leave(self, *, busy: bool) -> None:
        """Free the place; halve the limit when the server is busy, once a second at most."""
        self.running -= 1
        now = time.monotonic()
        if busy and now - self.last_cut > 1.0:
            self.last_cut = now
            self.limit = max(1.0, self.limit / 2)
        self._freed.set()

    def rest(self, seconds: float) -> None:
        """No call for so long: the server asked for it."""
        self.resting_until = max(self.resting_until, time.monotonic() + seconds)

    def silent_for(self) -> float:
        """Seconds since the server last gave an answer that was one, without the time it asked us to wait."""
        return time.monotonic() - max(self.last_answer, self.asked_since, self.resting_until)

    def answered_since(self, moment: float) -> bool:
        """Whether it has answered anybody since."""
        return self.last_answer > moment


def _retry_after(value: str | None) -> float:
    """Seconds from a Retry-After header, which holds seconds or a date; 0 where there is none."""
    if not value:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _short(body: dict[str, Any]) -> dict[str, Any]:
    """A call of the same form with hardly any content."""
    if "messages" in body:
        begun = body["messages"][-1:] if "continue_final_message" in body else []
        return {**body, "messages": [{"role": "user", "content": "Hi"}, *begun], "max_tokens": 1}
    return {**body, "prompt": "Hi" if isinstance(body["prompt"], str) else body["prompt"][:1], "max_tokens": 1}


def _where(tokens: Sequence[str], ending: str) -> int:
    """Index of the token with which ``ending`` begins, or -1 where none does. Counted from the end: what stands before
    may hold characters of several tokens, or special tokens."""
    begin, text = len(tokens), ""
    while begin and len(text) < len(ending):
        begin -= 1
        text = tokens[begin] + text
    return begin if text == ending else -1


def _key(name: str) -> str:
    key = os.environ.get(name, "").strip() if name else ""
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the key in the environment variable {name} holds characters that no key has")
    return key


def _spellings(secret: str) -> re.Pattern[str]:
    """Finds ``secret`` as it is, and as JSON (also JSON inside of JSON), addresses and HTML spell its characters."""

    def one(character: str) -> str:
        code = ord(character)
        return rf"\\{{0,8}}(?:{re.escape(character)}|(?i:u{code:04x}|%{code:02x}|&#{code};|&#x{code:x};))"

    return re.compile("".join(map(one, secret)))


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for ``url`` (HTTP_PROXY, HTTPS_PROXY, NO_PROXY); none to this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise UserError(
            f"`base_url` is no address: {error}", where=url, hint="as in http://127.0.0.1:8000/v1"
        ) from None
    local = host == "localhost"
    with contextlib.suppress(ValueError):
        local = ipaddress.ip_address(host).is_loopback
    proxy = None if local or urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    if proxy and not proxy.startswith(("http://", "https://")):
        raise UserError(
            f"the environment names a {proxy.partition('://')[0]} proxy, and only http and https ones are supported",
            hint="name another one, or put the server's host into NO_PROXY",
        )
    return proxy


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(os.path.expanduser(name))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the tokenizer cannot be opened: {(str(error).strip().splitlines() or ['no reason'])[0]}",
            where=name,
            hint="give `tokenizer` of the backend the model's folder or hub id; `cai models pull NAME` prints the "
            "folder of a model of the catalog",
        ) from error


def _message(text: str) -> str:
    """The server's own words, in whichever form it gives them."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError):
        data = json.loads(text)
        error = data.get("error", data)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    return " ".join(text.split()) or "no text"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
