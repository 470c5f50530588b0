"""Calls per second of the ``openai`` backend against a server in another process that takes 50 ms for each.

    python tests/benchmarks/server_calls.py

The bound is concurrency / latency; prints the share of it that is reached, medians of three runs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.records import Message, ModelInput
from cai_plugins.backends.openai import OpenAIBackend
from cai_plugins.backends.plugin import OpenAIOptions

CALLS, CONCURRENCY, LATENCY = 10_000, 64, 0.05


def main() -> None:
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve().parent.parent / "servers.py"), "--delay", str(LATENCY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    backend = OpenAIBackend(OpenAIOptions(model="server:m", base_url=url, concurrency=CONCURRENCY))
    requests = [
        GenerateRequest(f"r{i}", ModelInput(messages=(Message("user", f"Question {i}?"),)), Sampling(64), i)
        for i in range(CALLS)
    ]
    list(backend.generate(requests[:200]))
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        assert sum(c.failure is None for c in backend.generate(requests)) == CALLS
        rates.append(CALLS / (time.perf_counter() - start))
    backend.close()
    server.kill()
    bound = CONCURRENCY / LATENCY
    rate = statistics.median(rates)
    print(f"{rate:.0f} calls/s of at most {bound:.0f} ({rate / bound:.1%}); runs {[round(r) for r in rates]}")


if __name__ == "__main__":
    main()
