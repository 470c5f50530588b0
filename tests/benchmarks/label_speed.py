"""How fast is the labeler ``logprob``, and what do the examples cost?

Pairs of hh-rlhf, both orders, the `paper` form with five examples. Side by side, on the same requests:

  engine      the transformers backend: every beginning that requests share is computed once
  batched     full prompts in batches, a row for each order and continuation, logits only where they are read
  one by one  each continuation of each order in a pass of its own

and the engine without examples. Probabilities must agree. Each round measures all four, medians are printed.

    python tests/benchmarks/label_speed.py --pairs HH_RLHF_FILE [--n 64] [--rounds 3] [--model NAME_OR_FOLDER]
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from cai_core.constitution import load_constitution
from cai_core.models.catalog import CATALOG, model_path
from cai_core.text.pairs import Pair, read_pairs
from cai_core.types.backend import ScoreRequest
from cai_core.types.labeler import Comparison
from cai_plugins.backends.plugin import TransformersOptions
from cai_plugins.backends.transformers import TransformersBackend
from cai_plugins.labelers.plugin import LogprobOptions, make_logprob

Found = dict[str, tuple[float, ...]]


def requests_for(pairs: Sequence[Pair], shots: int, form: str) -> list[ScoreRequest]:
    """What the labeler asks its judge."""
    constitution = load_constitution("harmless", Path())
    asked: list[ScoreRequest] = []

    def score(requests: Sequence[ScoreRequest]) -> list[Any]:
        asked.extend(requests)
        return []

    context = SimpleNamespace(seed=0, constitution=constitution, backend=lambda role: SimpleNamespace(score=score))
    labeler = make_logprob(LogprobOptions(format=form, shots=shots), context)  # type: ignore[arg-type]
    principles = [p for p in constitution.principles if p.comparison]
    comparisons = [
        Comparison(pair.id, pair.prompt, pair.a, pair.b, (random.Random(pair.id).choice(principles),)) for pair in pairs
    ]
    list(labeler.label(comparisons))
    return asked


class Plain:
    """Scoring without any sharing, on the model that the engine has opened."""

    def __init__(self, backend: TransformersBackend) -> None:
        backend._open()
        self.backend = backend
        self.model = backend._model

    def one_by_one(self, requests: Sequence[ScoreRequest]) -> Found:
        """A pass for each continuation."""
        return {r.id: tuple(self._rows([self._ids(r, c)])[0] for c in r.continuations) for r in requests}

    def batched(self, requests: Sequence[ScoreRequest], size: int = 16) -> Found:
        """Batches in the order of the file."""
        rows = [(r, k, self._ids(r, c)) for r in requests for k, c in enumerate(r.continuations)]
        found: dict[str, dict[int, float]] = {}
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            for (r, k, _), value in zip(part, self._rows([ids for _, _, ids in part]), strict=True):
                found.setdefault(r.id, {})[k] = value
        return {name: tuple(values[k] for k in sorted(values)) for name, values in found.items()}

    def _ids(self, request: ScoreRequest, continuation: str) -> tuple[list[int], list[int]]:
        after = self.backend._tokenizer(continuation, add_special_tokens=False)["input_ids"]
        return self.backend._encode(request.input), list(after)

    @torch.inference_mode()
    def _rows(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        width = max(len(ids) + len(after) for ids, after in rows)
        keep = max(len(after) for _, after in rows) + 1
        ids = torch.tensor([[0] * (width - len(i) - len(a)) + i + a for i, a in rows])
        mask = torch.tensor([[0] * (width - len(i) - len(a)) + [1] * (len(i) + len(a)) for i, a in rows])
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            use_cache=False,
            logits_to_keep=keep,
        ).logits
        values = []
        for row, (_, after) in zip(logits, rows, strict=True):
            steps = row[-len(after) - 1 : -1].float().log_softmax(-1)
            values.append(float(steps.gather(1, torch.tensor(after)[:, None]).double().sum()))
        return values


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="hh-rlhf's harmless-base/test.jsonl.gz, say")
    parser.add_argument("--n", type=int, default=64, help="pairs for the engine")
    parser.add_argument("--batched", type=int, default=16, help="of these, pairs for batches of full prompts")
    parser.add_argument("--one-by-one", type=int, default=4, help="of these, pairs for one pass each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--form", choices=("paper", "chat"), default="paper")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    arguments = parser.parse_args()
    model = str(model_path(arguments.model)) if arguments.model in CATALOG else arguments.model
    backend = TransformersBackend(TransformersOptions(model=model), "cpu")
    plain = Plain(backend)
    every = sorted(read_pairs(arguments.pairs, 1000), key=lambda pair: pair.id)
    # Pairs that do not fit are failures of the engine, which would make it look fast.
    pairs = [p for p in every if len(str(p)) < 4 * backend.context_length // 2][: arguments.n]
    assert len(pairs) == arguments.n, "the file has fewer pairs"
    five, none = (requests_for(pairs, shots, arguments.form) for shots in (5, 0))
    tokens = statistics.fmean(len(backend._encode(r.input)) for r in five)

    def engine(requests: Sequence[ScoreRequest]) -> Found:
        found = {}
        for scores in backend.score(requests):
            assert scores.failure is None, scores.failure
            found[scores.id] = scores.logprobs
        return found

    methods: dict[str, tuple[int, Callable[[], Found]]] = {
        "engine, five examples": (arguments.n, lambda: engine(five)),
        "engine, no examples": (arguments.n, lambda: engine(none)),
        "batched, five examples": (arguments.batched, lambda: plain.batched(five[: 2 * arguments.batched])),
        "one by one, five examples": (arguments.one_by_one, lambda: plain.one_by_one(five[: 2 * arguments.one_by_one])),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    found: dict[str, Found] = {}
    for _ in range(arguments.rounds):
        for name, (count, work) in methods.items():
            took, found[name] = timed(work)
            seconds[name].append(took / count)
            print(f"{name}: {took:.1f} s for {count} pairs", file=sys.stderr, flush=True)
    base = statistics.median(seconds["engine, five examples"])
    print(f"{arguments.model}, {arguments.form} form, {tokens:.0f} tokens a prompt, medians of {arguments.rounds}\n")
    print("| method | pairs | pairs/s | the engine with five examples takes |")
    print("| --- | --- | --- | --- |")
    for name, (count, _) in methods.items():
        one = statistics.median(seconds[name])
        print(f"| {name} | {count} | {1 / one:.2f} | 1/{one / base:.2f} of its time |")
    print(f"\nExamples cost {base / statistics.median(seconds['engine, no examples']):.2f} times no examples.")
    for name in ("batched, five examples", "one by one, five examples"):
        apart = max(
            abs(_probability(values) - _probability(found["engine, five examples"][request]))
            for request, values in found[name].items()
        )
        print(f"Largest difference of P(A) to {name}: {apart:.1e}")


def _probability(logprobs: Sequence[float]) -> float:
    return float(torch.tensor(logprobs, dtype=torch.float64).softmax(0)[0])


if __name__ == "__main__":
    main()
