"""Does ``torch.compile`` pay for a decoding step on this machine, beside linear layers packed for the CPU?

One new token for each of 48 rows after 300 others, SmolLM2-135M-Instruct in float32, a static cache so that nothing is
compiled twice. The ways take turns; medians. Compiling needs a C++ compiler; packed layers cannot be compiled.

    python tests/benchmarks/compiled.py [--rows 48] [--columns 300] [--repeats 7] [--model NAME_OR_FOLDER]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StaticCache

from cai_core.models.catalog import CATALOG, model_path
from cai_plugins._torch.packed import pack_linear_layers


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--columns", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    arguments = parser.parse_args()
    path = str(model_path(arguments.model)) if arguments.model in CATALOG else arguments.model

    def opened(packed: bool) -> Any:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        if packed:
            pack_linear_layers(model)
        return model

    plain, packed = opened(False), opened(True)
    cache = StaticCache(config=plain.config, max_cache_len=arguments.columns + 8)
    ids = torch.randint(1000, (arguments.rows, arguments.columns))
    token = ids[:, :1]

    def run(model: Any, given: torch.Tensor, start: int) -> torch.Tensor:
        positions = torch.arange(start, start + given.shape[1])
        for layer in cache.layers:
            layer.cumulative_length.fill_(start)
        with torch.no_grad():
            result: torch.Tensor = model(
                input_ids=given,
                past_key_values=cache,
                position_ids=positions[None].expand(arguments.rows, -1),
                logits_to_keep=1,
            ).logits
        return result

    run(plain, ids, 0)
    ways: dict[str, Any] = {
        "as transformers opens it": plain,
        "compiled": torch.compile(plain, dynamic=False),
        "compiled, `freezing` (weights packed by the compiler)": torch.compile(
            opened(False), dynamic=False, options={"freezing": True}
        ),
        "packed linear layers, as the engine has them": packed,
    }
    wanted = run(plain, token, arguments.columns)
    first, seconds = {}, {name: list[float]() for name in ways}
    for name, model in ways.items():
        first[name], logits = _timed(lambda model=model: run(model, token, arguments.columns))
        assert torch.allclose(logits, wanted, atol=1e-3), name
    for _ in range(arguments.repeats):
        for name, model in ways.items():
            seconds[name].append(_timed(lambda model=model: run(model, token, arguments.columns))[0])
    print("| way | ms a step | first step, s |\n| --- | --- | --- |")
    for name in ways:
        print(f"| {name} | {1000 * statistics.median(seconds[name]):.0f} | {first[name]:.1f} |")


def _timed(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
