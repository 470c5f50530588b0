"""The ``openai`` backend against a server that fails in every way, and what a user is told."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import time
import traceback
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cai_core.errors import CAIError, EnvironmentProblem, UserError
from cai_core.testing.tiny import tiny_model
from cai_core.types.backend import GenerateRequest, Sampling, ScoreRequest
from cai_core.types.records import Message, ModelInput
from cai_plugins.backends import openai
from cai_plugins.backends.openai import OpenAIBackend
from cai_plugins.backends.plugin import OpenAIOptions
from cai_plugins.labelers.questions import check_letters
from servers import FaultServer, fingerprint
from tiny import merging_tokenizer


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def backend(server: FaultServer, **options: Any) -> OpenAIBackend:
    return OpenAIBackend(OpenAIOptions(model="server:m", base_url=server.url, **options))


def asked(n: int, **given: Any) -> list[GenerateRequest]:
    return [
        GenerateRequest(f"r{i}", ModelInput(messages=(Message("user", f"Question {i}?"),), **given), Sampling(9), i)
        for i in range(n)
    ]


def test_every_request_gets_its_own_answer() -> None:
    with FaultServer() as server:
        one = backend(server, concurrency=5)
        done = {c.id: c for c in one.generate(asked(40))}
        one.close()
        one.close()
    assert one._thread is None
    assert server.most <= 5
    assert Counter(server.calls).most_common(1)[0][1] == 1
    by_text = {body["messages"][0]["content"]: fingerprint(body) for body in server.bodies}
    for i in range(40):
        assert done[f"r{i}"].text == f"Answer {by_text[f'Question {i}?']} to it."
        assert (done[f"r{i}"].tokens_in, done[f"r{i}"].tokens_out, done[f"r{i}"].finish) == (7, 5, "stop")
    assert {body["max_tokens"] for body in server.bodies} == {9}
    assert {body["seed"] for body in server.bodies} == set(range(40))
    assert {body["model"] for body in server.bodies} == {"m"}


def test_requests_are_taken_when_there_is_room_and_follow_ups_are_seen() -> None:
    ready = asked(3)
    with FaultServer() as server:
        one = backend(server, concurrency=2)

        class Feed:
            def __iter__(self) -> Feed:
                return self

            def __next__(self) -> GenerateRequest:
                if not ready:
                    raise StopIteration
                return ready.pop(0)

        seen = []
        for done in one.generate(Feed()):
            seen.append(done.id)
            if len(seen) <= 4:
                ready.append(GenerateRequest(f"f{len(seen)}", ModelInput(text="x"), Sampling(3), 0))
        one.close()
    assert len(seen) == 7


@pytest.mark.parametrize(
    "fault",
    ["429", "429 0.05", "500", "503", "502", "reset", "half", "garbage", "form", "abort", "error 429", "error 500"],
)
def test_what_fails_for_a_while_is_tried_again(fault: str) -> None:
    failing = random.Random(3)
    with FaultServer(lambda number, body: fault if failing.random() < 0.4 else "") as server:
        one = backend(server, concurrency=8, retries=50)
        done = list(one.generate(asked(30)))
        one.close()
    assert all(c.failure is None for c in done)
    assert len(done) == 30
    assert len(server.calls) > 30


def test_a_stalled_call_is_given_up_and_made_again() -> None:
    with FaultServer(lambda number, body: "stall" if number == 2 else "") as server:
        one = backend(server, timeout_s=0.3)
        assert all(c.failure is None for c in one.generate(asked(5)))
        one.close()
    assert len(server.calls) == 6


def test_one_request_that_always_fails_is_a_typed_row_and_the_others_are_answered() -> None:
    with FaultServer(lambda number, body: "500" if "Question 1?" in str(body) else "", delay=0.01) as server:
        one = backend(server, retries=3, concurrency=2)
        done = {c.id: c for c in one.generate(asked(12))}
        one.close()
    failure = done["r1"].failure
    assert failure is not None
    assert failure.kind == "infra"
    assert "failed 4 times: status 500: no 500" in failure.message
    assert [c.id for c in done.values() if c.failure] == ["r1"]


@pytest.mark.parametrize(
    ("fault", "kind"), [("400", "too_long"), ("filter", "refusal"), ("422", "infra"), ("null", "unparseable")]
)
def test_what_trying_again_cannot_mend_is_a_row_at_once(fault: str, kind: str) -> None:
    with FaultServer(lambda number, body: fault if "Question 1?" in str(body) else "") as server:
        one = backend(server)
        done = {c.id: c.failure for c in one.generate(asked(3))}
        one.close()
    assert done["r1"] is not None
    assert done["r1"].kind == kind
    assert done["r0"] is None
    assert ["Question 1?" in str(body) for body in server.bodies].count(True) == 1


def test_a_dead_server_stops_the_stage_and_makes_no_rows() -> None:
    with FaultServer(lambda number, body: "500" if number >= 4 else "", delay=0.05) as server:
        one = backend(server, concurrency=4, patience_s=0.5, retries=1)
        seen = []
        with pytest.raises(EnvironmentProblem, match=r"answered no call for 0\.5 s") as caught:
            seen.extend(one.generate(asked(20)))
        assert [c for c in seen if c.failure] == []
        assert "give the same command again" in str(caught.value)
        one.close()


def test_a_server_that_is_not_there_is_named() -> None:
    one = OpenAIBackend(OpenAIOptions(model="server:m", base_url="http://127.0.0.1:9/v1", patience_s=0.2))
    with pytest.raises(EnvironmentProblem, match=r"127\.0\.0\.1:9"):
        list(one.generate(asked(1)))
    one.close()


def test_a_certificate_that_is_not_trusted_stops_the_stage_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("this machine has no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    calls = []
    call = OpenAIBackend._call

    async def counted(self: OpenAIBackend, *given: Any) -> Any:
        calls.append(given)
        return await call(self, *given)

    monkeypatch.setattr(OpenAIBackend, "_call", counted)
    with FaultServer(tls=context) as server:
        one = backend(server, patience_s=0.5)
        with pytest.raises(EnvironmentProblem, match=r"is not trusted: self.signed.*\n.*SSL_CERT_FILE"):
            list(one.generate(asked(3)))
        one.close()
        assert len(calls) == 1
        # What the hint says helps: a process of its own, since trusted certificates are read at its start.
        asks = (
            "import sys; from cai_plugins.backends.openai import OpenAIBackend as B, OpenAIOptions as O\n"
            "one = B(O(model='server:m', base_url=sys.argv[1], patience_s=0.5)); print(one.context_length); one.close()"
        )
        found = subprocess.run(
            [sys.executable, "-c", asks, server.url],
            env={**os.environ, "SSL_CERT_FILE": str(certificate)}, check=True, capture_output=True, text=True,
        )  # fmt: skip
    assert found.stdout.strip() == "4096"


def test_fewer_calls_at_a_time_when_the_server_has_too_many() -> None:
    with FaultServer(delay=0.02) as server:
        server.fault = lambda number, body: "429" if server.running > 6 else ""
        one = backend(server, concurrency=32, retries=50)
        begin = time.monotonic()
        done = list(one.generate(asked(120)))
        assert time.monotonic() - begin < 60
        assert one._gate.limit < 32
        one.close()
    assert all(c.failure is None for c in done)


def test_no_call_is_made_while_the_server_asks_for_rest() -> None:
    times: list[float] = []

    def fault(number: int, body: dict[str, Any]) -> str:
        times.append(time.monotonic())
        return "503 0.6" if number == 0 else ""

    with FaultServer(fault) as server:
        one = backend(server, concurrency=1)
        assert len(list(one.generate(asked(2)))) == 2
        one.close()
    assert times[1] - times[0] >= 0.6


def test_the_key_is_sent_and_shows_up_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    caplog.set_level(logging.DEBUG)
    with FaultServer(lambda number, body: "401") as server:
        one = backend(server, api_key_env="MY_KEY")
        with pytest.raises(UserError, match="refuses the key") as caught:
            list(one.generate(asked(1)))
        one.close()
        assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "sk-very" not in str(caught.value)
    assert "sk-very" not in caplog.text
    assert "sk-very" not in repr(one.options)


@pytest.mark.parametrize("key", ["to", "EMPTY", "content", "choices", "finish_reason"])
def test_a_key_that_stands_in_good_answers_changes_nothing(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with FaultServer() as server:
        answer = server.reply
        server.reply = lambda body: answer(body) | {"EMPTY": key}  # type: ignore[method-assign]
        one = backend(server)
        (done,) = one.generate(asked(1))
        (scores,) = one.score([ScoreRequest("s", ModelInput(text="Go"), (f" {key}",))])
        one.close()
        assert server.headers[0]["Authorization"] == f"Bearer {key}"
    assert done.text == f"Answer {server.calls[0]} to it."
    assert (done.finish, done.failure) == ("stop", None)
    assert scores.logprobs == (-float(len(key) + 1),)


KEY = "sk-ab/cd+ef"
ESCAPED = r"sk-ab\/cd\u002bef"


@pytest.mark.parametrize(
    "fault",
    [
        *(f'say {status} {{"error": {{"message": "it is {ESCAPED}"}}}}' for status in (200, 400, 401, 404, 429, 500)),
        f"say 500 {KEY}",
        'say 500 {"error": {"message": "' + "x" * 185 + ESCAPED + '"}}',
        # JSON inside of the message, as gateways hand it on.
        f"say 500 {json.dumps({'error': {'message': json.dumps({'message': KEY}).replace('/', chr(92) + '/')}})}",
        f'say 500 {{"error": ["{ESCAPED}"]}}',
        "say 500 <p>sk-ab%2Fcd%2bef</p>",
        "say 500 <p>sk-ab&#x2F;cd&#43;ef</p>",
        f"say 200 {ESCAPED} is no JSON",
        "say 200 " + "x" * 72 + KEY,
        f'say 200 {{"choices": [], "key": "{ESCAPED}"}}',
        f'say 200 {{"choices": [{{"text": "x"}}], "usage": {{"prompt_tokens": "{ESCAPED}"}}}}',
        f'say 200 {{"choices": [{{"message": {{"content": null, "refusal": "{ESCAPED}"}}}}]}}',
        f'say 200 {{"choices": [{{"message": {{"content": null}}, "finish_reason": "{ESCAPED}"}}]}}',
        f"to http://elsewhere/{KEY}",
    ],
)
def test_the_key_is_in_no_message(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer(lambda number, body: fault) as server:
        one = backend(server, patience_s=0.1, retries=0)
        try:
            told = "".join(done.failure.message for done in one.generate(asked(1)) if done.failure)
        except CAIError as error:
            told = "".join(traceback.format_exception(error))
        one.close()
    assert "[key]" in told
    assert "sk-ab" not in told


def test_the_key_is_in_no_message_of_scores_and_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer() as server:
        logprobs = {"tokens": ["a", " b", "x"], "token_logprobs": [None, KEY, -1]}
        server.reply = lambda body: {"choices": [{"logprobs": logprobs}]}  # type: ignore[method-assign]
        one = backend(server, patience_s=0.1, retries=0)
        (scores,) = one.score([ScoreRequest("s", ModelInput(text="a"), (" b",))])
        one.close()
    assert scores.failure is not None
    assert "'[key]'" in scores.failure.message
    with FaultServer(models=[{"id": KEY}]) as server, pytest.raises(UserError) as caught:
        list(backend(server).generate(asked(1)))
    assert "it has [key]" in str(caught.value)


@pytest.mark.parametrize("password", ["hush", "ab/cd+ef"])
def test_a_proxys_password_is_in_no_message(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://user:{quote(password, safe='')}@127.0.0.1:9")
    one = OpenAIBackend(OpenAIOptions(model="server:m", base_url="http://models.example/v1"))
    for spelled in {password, quote(password, safe="")} if len(password) >= openai.SHORTEST_SECRET else ():
        assert one._hidden(f"sent {spelled}") == "sent [key]"
    assert one._hidden(f"asked {one._proxy} for it") == "asked http://[key]@127.0.0.1:9 for it"


def test_a_missing_key_and_an_unknown_model_are_told() -> None:
    with FaultServer(lambda number, body: "401") as server:
        one = backend(server)
        with pytest.raises(UserError, match="OPENAI_API_KEY"):
            list(one.generate(asked(1)))
        one.close()
        other = OpenAIBackend(OpenAIOptions(model="server:x", base_url=server.url))
        with pytest.raises(UserError, match="it has m"):
            list(other.generate(asked(1)))
    with FaultServer(models="none") as server:
        one = backend(server)
        assert one.context_length == openai.UNKNOWN_CONTEXT
        one.close()


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "ftp://host", "host:80"])
def test_an_address_with_a_key_in_it_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        OpenAIOptions(base_url=url)


def test_raw_text_stops_and_beginnings() -> None:
    stops = tuple(f"stop{i}" for i in range(6))
    with FaultServer() as server:
        one = backend(server)
        given = ModelInput(text="Human:", prefill=" Yes", stop=(*stops[:5], " to it"))
        text = GenerateRequest("t", given, Sampling(9), 1)
        (done,) = one.generate([text])
        begun = GenerateRequest("b", ModelInput(messages=(Message("user", "Hi"),), prefill="The"), Sampling(9), 1)
        list(one.generate([begun]))
        one.close()
        asking = backend(server, prefill="ask")
        list(asking.generate([begun]))
        asking.close()
    assert server.bodies[0]["prompt"] == "Human: Yes"
    assert server.bodies[0]["stop"] == list(stops[:4])
    assert done.text == f"Answer {server.calls[0]}"
    assert done.finish == "stop"
    assert server.bodies[1]["messages"][-1] == {"role": "assistant", "content": "The"}
    assert server.bodies[1]["continue_final_message"] is True
    assert server.bodies[2]["messages"][-1]["content"].endswith("Begin your answer with these words: The")


def test_continuations_are_scored_from_the_prompt() -> None:
    with FaultServer() as server:
        one = backend(server)
        (scores,) = one.score([ScoreRequest("s", ModelInput(text="The answer is:"), (" (A)", " (BB) (C)"))])
        assert scores.logprobs == (-4.0, -9.0)
        assert scores.tokens == (1, 2)
        (odd,) = one.score([ScoreRequest("s", ModelInput(text="The answer is:"), ("(A)",))])
        assert odd.failure is not None
        assert "no token begins" in odd.failure.message
        with pytest.raises(CAIError, match="this is a conversation"):
            list(one.score([ScoreRequest("s", ModelInput(messages=(Message("user", "Hi"),)), (" A", " B"))]))
        server.reply = lambda body: {"choices": [{"text": "x", "finish_reason": "stop"}]}
        with pytest.raises(CAIError, match="no log-probabilities of the prompt"):
            list(one.score([ScoreRequest("s", ModelInput(text="x"), (" A", " B"))]))
        one.close()


def test_what_is_scored_is_proved_where_the_tokenizer_is_known(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    conversation = ModelInput(messages=(Message("user", "Which one?"),), prefill="The answer is:")
    text = ModelInput(text="The answer is:")
    with FaultServer() as server:
        one = backend(server, tokenizer=str(folder))
        for given in (conversation, text):
            assert one.score_problem(ScoreRequest("x", given, (" (A)", " (B)"))) == ""
        marked = one.score_problem(ScoreRequest("x", text, (" <|im_end|>",)))
        assert "is not what its tokens stand for" in marked
        one._tokenizer.chat_template = "{{ raise_exception('no users') }}"
        assert "refused the conversation: no users" in one.score_problem(ScoreRequest("x", conversation, (" (A)",)))
        one.close()
        merging = backend(server, tokenizer=str(merging_tokenizer(tmp_path / "merging", " (A)", " (B)")))
        assert "is read as" in merging.score_problem(ScoreRequest("x", text, (" (A)", " (B)")))
        with pytest.raises(CAIError, match="have the same tokens"):
            merging.score_problem(ScoreRequest("x", text, (" (A)", " (C)", " (D)")))
        with pytest.raises(CAIError, match="have the same tokens"):
            list(merging.score([ScoreRequest("x", text, (" (C)", " (D)"))]))
        merging.close()
        calls = len(server.calls)
        plain = backend(server)
        assert plain.score_problem(ScoreRequest("x", text, (" (A)", " (B)"))) == ""
        assert len(server.calls) == calls
    with FaultServer() as server:
        judge = backend(server, tokenizer=str(tmp_path / "merging"))
        with pytest.raises(UserError, match="does not score what is meant"):
            check_letters(judge, text)
        judge.close()
    assert server.calls == []


def test_a_body_without_end_is_no_danger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "MAX_BODY", 10_000)
    with FaultServer() as server:
        server.reply = lambda body: {"choices": [{"text": "x" * (100_000 if "Question" in str(body) else 1)}]}
        one = backend(server)
        (done,) = one.generate(asked(1))
        one.close()
    assert done.failure is not None
    assert "larger than" in done.failure.message


def test_one_request_that_always_fails_alone_is_a_row_too() -> None:
    """After a restart it is the only one left: no other answers tell that the server works."""
    with FaultServer(lambda number, body: "500" if "Question" in str(body) else "") as server:
        one = backend(server, retries=2)
        (done,) = one.generate(asked(1))
        one.close()
    assert done.failure is not None
    assert done.failure.kind == "infra"
    assert [body["messages"][0]["content"] for body in server.bodies] == ["Question 0?"] * 3 + ["Hi"]


def test_a_request_on_which_the_server_stalls_alone_is_a_row() -> None:
    with FaultServer(lambda number, body: "stall" if "Question" in str(body) else "") as server:
        one = backend(server, retries=1, timeout_s=0.3, patience_s=0.2)
        (done,) = one.generate(asked(1))
        one.close()
    assert done.failure is not None
    assert "failed 2 times: TimeoutError" in done.failure.message


def test_a_call_ends_with_its_units_deadline() -> None:
    with FaultServer(lambda number, body: "stall" if "Question 0?" in str(body) else "") as server:
        one = backend(server, deadline_s=0.4, timeout_s=200)
        done = {c.id: c.failure for c in one.generate(asked(2))}
        one.close()
    assert done["r1"] is None
    assert done["r0"] is not None
    assert "no answer in 0.4 s" in done["r0"].message


def test_a_server_that_refuses_even_a_short_call_of_the_form_stops_the_stage() -> None:
    """Rows stay for ever, and these would be the recipe's fault."""
    with FaultServer(lambda number, body: "422" if "continue_final_message" in body else "") as server:
        one = backend(server)
        seen = []
        with pytest.raises(EnvironmentProblem, match="refuses every call: status 422"):
            seen.extend(one.generate(asked(5, prefill="The")))
        one.close()
    assert seen == []


def test_a_busy_server_uses_up_no_tries() -> None:
    with FaultServer(lambda number, body: "429" if number < 12 else "") as server:
        one = backend(server, retries=1)
        (done,) = one.generate(asked(1))
        one.close()
    assert done.failure is None


def test_a_long_retry_after_stops_the_stage_and_a_date_is_understood() -> None:
    with FaultServer(lambda number, body: "429 7200") as server:
        one = backend(server)
        with pytest.raises(EnvironmentProblem, match="pause of 7200 s"):
            list(one.generate(asked(3)))
        one.close()
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 85 < openai._retry_after(at) <= 90
    assert openai._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for odd in ("soon", "nan", "-3", "Wed, 99 Oct 99999 07:28:00 GMT", ""):
        assert openai._retry_after(odd) == 0


def test_text_of_half_characters() -> None:
    with FaultServer(lambda number, body: "bytes" if number == 0 else "surrogate") as server:
        one = backend(server, concurrency=1)
        texts = [c.text for c in one.generate(asked(2))]
        one.close()
    assert texts == ["Größe 🙂", "a?"]


@pytest.mark.parametrize("models", [[], {}, "x", 5, [5, None], [{"id": "m", "max_model_len": "x"}]])
def test_odd_lists_of_models(models: Any) -> None:
    with FaultServer(models=models) as server:
        one = backend(server)
        assert one.context_length == openai.UNKNOWN_CONTEXT
        one.close()


def test_a_redirect_is_not_followed_and_the_key_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with FaultServer() as other, FaultServer(lambda number, body: f"to {other.url}/chat/completions?k=1") as server:
        one = backend(server)
        with pytest.raises(UserError, match=rf"redirects to http://127\.0\.0\.1:{other.port}/v1/chat/completions\n?"):
            list(one.generate(asked(2)))
        one.close()
    assert other.headers == []


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer() as server:
        one = OpenAIBackend(OpenAIOptions(model="server:m", base_url=f"{server.url}/"))
        assert len(list(one.generate(asked(2)))) == 2
        one.close()
        one = OpenAIBackend(OpenAIOptions(model="server:m", base_url=server.url.removesuffix("/v1")))
        with pytest.raises(UserError, match="usually ends on /v1"):
            list(one.generate(asked(2)))
        one.close()
    for url in ("http://[::1/v1", "http://host:port/v1"):
        with pytest.raises(UserError, match="is no address"):
            OpenAIBackend(OpenAIOptions(model="server:m", base_url=url))


def test_an_ipv6_address() -> None:
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with FaultServer(host="::1") as server:
        one = backend(server)
        assert len(list(one.generate(asked(2)))) == 2
        one.close()


def test_the_environments_proxy_is_used_but_not_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://user:hidden-word@127.0.0.1:9")
    with FaultServer() as server:
        one = backend(server)
        assert len(list(one.generate(asked(2)))) == 2
        one.close()
    one = OpenAIBackend(OpenAIOptions(model="server:m", base_url="http://models.example/v1", patience_s=0.1))
    with pytest.raises(EnvironmentProblem, match=r"127\.0\.0\.1:9") as caught:
        list(one.generate(asked(1)))
    one.close()
    assert "hidden-word" not in "".join(traceback.format_exception(caught.value))
    monkeypatch.setenv("NO_PROXY", "models.example")
    assert openai._proxy("http://models.example/v1") is None
    monkeypatch.setenv("HTTP_PROXY", "socks5://x:1")
    with pytest.raises(UserError, match="socks5 proxy"):
        openai._proxy("http://others.example/v1")


def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a\nb")
    with pytest.raises(UserError, match="characters that no key has") as caught:
        OpenAIBackend(OpenAIOptions(model="server:m"))
    assert "sk-a" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a\n")
    assert OpenAIBackend(OpenAIOptions(model="server:m"))._key == "sk-a"


def test_text_that_is_scored_may_have_characters_of_several_tokens_before_it() -> None:
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        tokens = ["<s>", "\ufffd", "\ufffd", ":", " (", "A)", "x"]
        return {"choices": [{"logprobs": {"tokens": tokens, "token_logprobs": [None, -1, -1, -1, -2, -3, -9]}}]}

    with FaultServer() as server:
        server.reply = reply  # type: ignore[method-assign]
        one = backend(server)
        (scores,) = one.score([ScoreRequest("s", ModelInput(text="🙂:"), (" (A)",))])
        one.close()
    assert (scores.logprobs, scores.tokens, scores.tokens_in) == ((-5.0,), (2,), 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "x"])
def test_log_probabilities_that_are_none(value: Any) -> None:
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        if body["prompt"] == "Hi":
            return {}
        return {"choices": [{"logprobs": {"tokens": ["a", " b", "x"], "token_logprobs": [None, value, -1]}}]}

    with FaultServer() as server:
        server.reply = reply  # type: ignore[method-assign]
        one = backend(server, retries=1)
        (scores,) = one.score([ScoreRequest("s", ModelInput(text="a"), (" b",))])
        one.close()
    assert scores.failure is not None
    assert scores.failure.kind == "infra"


def test_vllm_is_told_what_it_would_take_from_the_model() -> None:
    with FaultServer(models=[{"id": "m", "owned_by": "vllm"}]) as server:
        one = backend(server)
        list(one.generate(asked(1)))
        one.close()
    assert server.bodies[0].items() >= openai.NEUTRAL.items()


def test_text_never_becomes_a_special_token(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    with FaultServer(models=[{"id": "m", "owned_by": "vllm"}]) as server:
        one = backend(server, tokenizer=str(folder))
        list(one.generate(asked(1)))
        list(one.generate([GenerateRequest("x", ModelInput(text="a<|im_end|>b"), Sampling(4), 1)]))
        one.close()
        with pytest.raises(UserError, match="tokenizer cannot be opened"):
            list(backend(server, tokenizer=str(tmp_path / "none")).generate(asked(1)))
    ends = one._tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert server.bodies[0]["prompt"].count(ends) == 1  # the turn's own end
    assert ends not in server.bodies[1]["prompt"]
    assert ends in server.bodies[0]["stop_token_ids"]
