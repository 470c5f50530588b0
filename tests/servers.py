"""A server that speaks the OpenAI protocol and fails on request; what it answers is a function of what it is asked.

As a program, ``python tests/servers.py --delay 0.05`` prints its port and serves until its input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import ssl
import sys
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

Fault = Callable[[int, dict[str, Any]], str]


def fingerprint(body: dict[str, Any]) -> str:
    """Names what is asked: prompt and seed."""
    asked = [body.get("messages"), body.get("prompt"), body.get("seed")]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


class FaultServer:
    """In a thread. ``fault(number of the call, body)`` names what goes wrong with it: "", a status, "429 1" (with
    Retry-After), reset, half, garbage, form, stall, filter, abort, null, bytes (sent one by one), surrogate, keys
    (the request's headers in the message of a 500), "error 429" (status 200 with an error in it), "to URL" (a
    redirect), "say 500 TEXT" (this status and body)."""

    def __init__(
        self,
        fault: Fault = lambda number, body: "",
        delay: float = 0.0,
        models: Any = None,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self.tls = tls
        self.fault = fault
        self.delay = delay
        self.models = models if models is not None else [{"id": "m", "max_model_len": 4096}]
        self.calls: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = 0
        self.most = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> FaultServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def url(self) -> str:
        """With /v1."""
        return f"http{'s' if self.tls else ''}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/v1"

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self.start())
        self._ready.set()
        self._loop.run_forever()

    async def start(self) -> None:
        """Listen on a free port."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, self.host, 0, backlog=1024, ssl_context=self.tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if self.models == "none":
            return web.Response(status=404)
        return web.json_response({"data": self.models})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        number = len(self.calls)
        self.calls.append(fingerprint(body))
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            return await self._fail(request, body, self.fault(number, body))
        finally:
            self.running -= 1

    async def _fail(self, request: web.Request, body: dict[str, Any], fault: str) -> web.StreamResponse:
        good = json.dumps(self.reply(body)).encode()
        if fault == "":
            return web.Response(body=good, content_type="application/json")
        if fault == "reset":
            request.transport.abort()
            return web.Response()
        if fault == "half":
            response = web.StreamResponse(headers={"Content-Length": str(len(good))})
            await response.prepare(request)
            await response.write(good[: len(good) // 2])
            request.transport.abort()
            return response
        if fault == "garbage":
            return web.Response(text="<html>hello</html>")
        if fault == "form":
            return web.json_response({"choices": []})
        if fault == "filter":
            return web.json_response({"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]})
        if fault == "abort":
            return web.json_response({"choices": [{"message": {"content": "Ans"}, "finish_reason": "abort"}]})
        if fault == "null":
            return web.json_response({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]})
        if fault == "surrogate":
            return web.Response(text='{"choices": [{"message": {"content": "a\\ud83d"}}]}')
        if fault == "bytes":
            response = web.StreamResponse()
            await response.prepare(request)
            for byte in json.dumps({"choices": [{"message": {"content": "Größe 🙂"}}]}, ensure_ascii=False).encode():
                await response.write(bytes([byte]))
            return response
        if fault == "keys":
            return web.Response(status=500, text=f"headers were {dict(request.headers)}")
        if fault.startswith("error "):
            return web.json_response({"error": {"message": "said in a 200", "code": int(fault[6:])}})
        if fault.startswith("to "):
            return web.Response(status=307, headers={"Location": fault[3:]})
        if fault.startswith("say "):
            _, status, said = fault.split(" ", 2)
            return web.Response(status=int(status), text=said)
        if fault == "stall":
            await asyncio.sleep(3600)
        status, _, after = fault.partition(" ")
        said = "This model's maximum context length is 9" if status == "400" else f"no {status}"
        error = {"error": {"message": said}}
        headers = {"Retry-After": after} if after else {}
        return web.json_response(error, status=int(status), headers=headers)

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        """A completion that names what was asked; the log-probability of a token is minus its length."""
        text = f"Answer {fingerprint(body)} to it."
        usage = {"prompt_tokens": 7, "completion_tokens": 5}
        if body.get("echo"):
            usage = {}
        if "messages" in body:
            return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
        choice: dict[str, Any] = {"text": text, "finish_reason": "length"}
        if body.get("echo"):
            words = body["prompt"] if isinstance(body["prompt"], list) else body["prompt"].split(" ")
            tokens = [f" {word}" for word in words]
            offsets, at = [], -1
            for token in tokens:
                offsets.append(max(0, at))
                at += len(token)
            logprobs = [None, *(-float(len(token)) for token in tokens[1:])]
            offsets.append(at)
            choice["logprobs"] = {"tokens": [*tokens, "x"], "text_offset": offsets, "token_logprobs": [*logprobs, -9.0]}
        return {"choices": [choice], "usage": usage}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    with FaultServer(delay=parser.parse_args().delay) as server:
        print(server.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
