"""The ``openai`` backend against a real vLLM server: the same text and log-probabilities as ``transformers``.

``CAI_VLLM`` names a running server (http://127.0.0.1:8000/v1, with the embedded model in float32, as the how-to page on
servers starts it) or the Python of an environment with vLLM, which then starts one.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai_core.types.backend import GenerateRequest, Sampling, ScoreRequest
from cai_core.types.records import Message, ModelInput
from cai_plugins.backends.openai import OpenAIBackend
from cai_plugins.backends.plugin import OpenAIOptions, TransformersOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MODEL = Path(os.environ.get("CAI_CACHE", Path.home() / ".cache" / "cai-core")) / "models" / "smollm2-135m-instruct"
NAME = "smollm2"
START_S = 600
LETTERS = (" (A)", " (B)")
CHAT = ModelInput(messages=(Message("user", "Name three things that one can see in a forest."),))
LONG = (
    Message("system", "You answer in one sentence."),
    Message("user", "Where does rain come from?"),
    Message("assistant", "From clouds, in which water vapour cools down."),
    Message("user", "And snow? Größe 🙂"),
)
INPUTS = {
    "chat": CHAT,
    "turns": ModelInput(messages=LONG),
    "prefill": ModelInput(messages=CHAT.messages, prefill="In a forest one can see"),
    "text": ModelInput(text="Human: How do I bake bread?\n\nAssistant:"),
    "text with a beginning": ModelInput(text="Human: How do I bake bread?\n\nAssistant:", prefill=" First of all,"),
    "stop": ModelInput(text="Once upon a time, in a small village,", stop=("there", ".", ",", ";", "!", "?")),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    given = os.environ.get("CAI_VLLM", "")
    if not given:
        pytest.skip("CAI_VLLM names no vLLM server and no Python that has vLLM; see docs/how-to/servers.md")
    if not (MODEL / "model.safetensors").exists():
        pytest.skip("the embedded model is not there: cai models pull smollm2-135m-instruct")
    if given.startswith("http"):
        yield given
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [given, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL), "--served-model-name", NAME]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--host", "127.0.0.1"]
    set_here = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    # Its environment is its own.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    server = subprocess.Popen([*command, "--port", str(port)], env={**environment, **set_here})
    try:
        until = time.monotonic() + START_S
        while True:
            assert server.poll() is None, "the vLLM server ended while it started"
            assert time.monotonic() < until, "the vLLM server does not start"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    from cai_plugins.backends.transformers import TransformersBackend

    one = TransformersBackend(TransformersOptions(model=str(MODEL), dtype="float32"), "cpu")
    yield one
    one.close()


@pytest.fixture(params=["rendered by the server", "rendered here"])
def served(url: str, request: pytest.FixtureRequest) -> Iterator[OpenAIBackend]:
    tokenizer = str(MODEL) if request.param == "rendered here" else ""
    one = OpenAIBackend(OpenAIOptions(model=f"server:{NAME}", base_url=url, tokenizer=tokenizer))
    yield one
    one.close()


def greedy(inputs: dict[str, ModelInput]) -> list[GenerateRequest]:
    return [GenerateRequest(name, given, Sampling(24, temperature=0.0), 1) for name, given in inputs.items()]


def test_greedy_text_is_the_same(served: OpenAIBackend, local: Any) -> None:
    expected = {c.id: c for c in local.generate(greedy(INPUTS))}
    found = {c.id: c for c in served.generate(greedy(INPUTS))}
    assert {name: c.failure for name, c in found.items()} == dict.fromkeys(INPUTS)
    assert {name: c.text for name, c in found.items()} == {name: c.text for name, c in expected.items()}
    assert {name: c.finish for name, c in found.items()} == {name: c.finish for name, c in expected.items()}
    assert {name: c.tokens_in for name, c in found.items()} == {name: c.tokens_in for name, c in expected.items()}
    assert found["stop"].finish == "stop"
    assert not any(stop in found["stop"].text for stop in INPUTS["stop"].stop)


def test_log_probabilities_are_the_same(served: OpenAIBackend, local: Any) -> None:
    asked = [
        ScoreRequest("letters", ModelInput(text="Which is safer?\n(A) tea\n(B) petrol\nThe answer is:"), LETTERS),
        ScoreRequest("words", ModelInput(text="Größe 🙂, the sky is"), (" blue.", " a large green field of grass 🙂")),
        ScoreRequest("begun", ModelInput(text="The sky", prefill=" is"), (" blue", " green")),
    ]
    if served.options.tokenizer:
        asked += [
            ScoreRequest("chat", ModelInput(messages=LONG, prefill="The answer is:"), LETTERS),
            # Tokens that end and begin where no text that is read as a whole would be cut.
            ScoreRequest("inside a word", ModelInput(text="The wea"), ("ther", "pon")),
        ]
    else:
        # The end of 🙂 is no token of its own text.
        asked[1] = ScoreRequest("words", asked[1].input, (" blue.", " a large green field of grass"))
    expected = {s.id: s for s in local.score(asked)}
    found = {s.id: s for s in served.score(asked)}
    assert {name: s.failure for name, s in found.items()} == {request.id: None for request in asked}
    for name, scores in expected.items():
        assert found[name].tokens == scores.tokens, name
        assert found[name].tokens_in == scores.tokens_in, name
        assert found[name].logprobs == pytest.approx(scores.logprobs, abs=1e-3), name


def test_a_boundary_inside_a_token_is_a_typed_row(url: str) -> None:
    one = OpenAIBackend(OpenAIOptions(model=f"server:{NAME}", base_url=url))
    (scores,) = one.score([ScoreRequest("s", ModelInput(text="The wea"), ("ther",))])
    one.close()
    assert scores.failure is not None
    assert "the option `tokenizer`" in scores.failure.message


def test_sampled_text_is_its_seeds_and_of_the_right_distribution(served: OpenAIBackend, local: Any) -> None:
    """The same seed, the same text; other seeds, other texts. How often a first token comes out is what the
    log-probabilities say, so no default of the model's own (top_k, a penalty) has come in between."""
    given = ModelInput(text="Which is safer?\n(A) tea\n(B) petrol\nThe answer is: (")
    asked = [GenerateRequest(str(seed), given, Sampling(1), seed) for seed in range(96)]
    first = {c.id: c.text for c in served.generate(asked)}
    assert {c.id: c.text for c in served.generate(asked)} == first
    assert len(set(first.values())) > 1
    (scores,) = local.score([ScoreRequest("s", given, ("A", "B"))])
    for letter, logprob in zip("AB", scores.logprobs, strict=True):
        p = math.exp(logprob)
        share = sum(text == letter for text in first.values()) / len(first)
        assert abs(share - p) < 4 * (p * (1 - p) / len(first)) ** 0.5 + 1e-3, (letter, share, p)


def test_what_is_too_long_is_that_requests_failure(served: OpenAIBackend) -> None:
    long = GenerateRequest("long", ModelInput(text="word " * 3000), Sampling(4, temperature=0.0), 1)
    done = {c.id: c for c in served.generate([*greedy({"chat": CHAT}), long])}
    assert served.context_length == 2048
    assert done["chat"].failure is None
    assert done["long"].failure is not None
    assert done["long"].failure.kind == "too_long"
