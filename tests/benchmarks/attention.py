"""What attention costs in a decoding step on this machine, against reading its keys and values at all.

One new token for each of 48 rows of 500 tokens, in the shape of SmolLM2-135M (30 layers, 3 key heads, 9 query heads of
64). Best of three.

    python tests/benchmarks/attention.py [--rows 48] [--columns 500]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

LAYERS, HEADS, GROUP, WIDTH = 30, 3, 3, 64


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--columns", type=int, default=500)
    arguments = parser.parse_args()
    rows, columns = arguments.rows, arguments.columns
    shape = (rows, HEADS, columns, WIDTH)
    keys, values = ([torch.randn(shape) for _ in range(LAYERS)] for _ in range(2))
    half = [[t.bfloat16() for t in tensors] for tensors in (keys, values)]
    query = torch.randn(rows, HEADS, GROUP, WIDTH)
    mask = torch.ones(rows, 1, 1, columns, dtype=torch.bool).expand(rows, 1, GROUP, columns)

    def products(layer: int) -> None:
        scores = (torch.matmul(query, keys[layer].transpose(2, 3)) * WIDTH**-0.5).softmax(-1)
        torch.matmul(scores, values[layer])

    ways: dict[str, tuple[int, Callable[[int], object]]] = {
        "reading only (sum)": (4, lambda layer: (keys[layer].sum(), values[layer].sum())),
        "scaled_dot_product_attention": (
            4, lambda layer: scaled_dot_product_attention(query, keys[layer], values[layer], attn_mask=mask)
        ),
        "two matrix products": (4, products),
        "the same kernel on bfloat16": (
            2, lambda layer: scaled_dot_product_attention(query.bfloat16(), half[0][layer], half[1][layer])
        ),
    }  # fmt: skip
    print("| way | ms a step | GB/s |\n| --- | --- | --- |")
    for name, (size, work) in ways.items():
        best = min(_timed(work) for _ in range(3))
        print(f"| {name} | {1000 * best:.0f} | {2 * LAYERS * keys[0].numel() * size / best / 1e9:.1f} |")


def _timed(work: Callable[[int], object]) -> float:
    start = time.perf_counter()
    for layer in range(LAYERS):
        work(layer)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
