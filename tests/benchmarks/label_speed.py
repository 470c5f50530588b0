"""How fast is the labeler ``logprob``, and what do the examples cost?

Pairs of hh-rlhf, both orders, the `paper` form with five examples. Side by side, on the same requests:

  engine      the transformers backend: every beginning that requests share is computed once
  batched     full prompts in batches, a row for each order and continuation
  one by one  each continuation of each order in a pass of its own, as one writes it: `model(ids).logits`
  the same, frugal: logits only where they are read

and the engine without examples. The plain ways have a model of their own, as transformers opens it. Probabilities must
agree. Each round measures all of them on the same pairs as far as they go; a pair's time is compared by its tokens.

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
from transformers import AutoModelForCausalLM

from cai_core.constitution import load_constitution
from cai_core.models.catalog import CATALOG, model_path
from cai_core.text.pairs import Pair, read_pairs
from cai_core.types.backend import ScoreRequest
from cai_core.types.labeler import Comparison
from cai_plugins.backends.plugin import TransformersOptions
from cai_plugins.backends.transformers import TransformersBackend
from cai_plugins.labelers.plugin import LogprobOptions, make_logprob

Found = dict[str, tuple[float, ...]]
ENGINE = "engine, five examples"


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
    """Scoring without any sharing."""

    def __init__(self, backend: TransformersBackend, model: str) -> None:
        self.backend = backend
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=backend._model.dtype).eval().to(backend.device)

    def one_by_one(self, requests: Sequence[ScoreRequest], frugal: bool = False) -> Found:
        """A pass for each continuation."""
        return {r.id: tuple(self._rows([self._ids(r, c)], frugal)[0] for c in r.continuations) for r in requests}

    def batched(self, requests: Sequence[ScoreRequest], frugal: bool = False, size: int = 8) -> Found:
        """Batches in the order of the file."""
        rows = [(r, k, self._ids(r, c)) for r in requests for k, c in enumerate(r.continuations)]
        found: dict[str, dict[int, float]] = {}
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            for (r, k, _), value in zip(part, self._rows([ids for _, _, ids in part], frugal), strict=True):
                found.setdefault(r.id, {})[k] = value
        return {name: tuple(values[k] for k in sorted(values)) for name, values in found.items()}

    def _ids(self, request: ScoreRequest, continuation: str) -> tuple[list[int], list[int]]:
        after = self.backend._tokenizer(continuation, add_special_tokens=False)["input_ids"]
        return self.backend._encode(request.input), list(after)

    @torch.inference_mode()
    def _rows(self, rows: list[tuple[list[int], list[int]]], frugal: bool) -> list[float]:
        width = max(len(ids) + len(after) for ids, after in rows)
        ids = torch.tensor([[0] * (width - len(i) - len(a)) + i + a for i, a in rows], device=self.model.device)
        given: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if len(rows) > 1:
            mask = torch.tensor([[0] * (width - len(i) - len(a)) + [1] * (len(i) + len(a)) for i, a in rows])
            mask = mask.to(self.model.device)
            given |= {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
        if frugal:
            given["logits_to_keep"] = max(len(after) for _, after in rows) + 1
        logits = self.model(**given).logits
        values = []
        for row, (_, after) in zip(logits, rows, strict=True):
            steps = row[-len(after) - 1 : -1].float().log_softmax(-1)
            values.append(float(steps.gather(1, torch.tensor(after, device=steps.device)[:, None]).double().sum()))
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
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="a GPU computes in bfloat16")
    arguments = parser.parse_args()
    model = str(model_path(arguments.model)) if arguments.model in CATALOG else arguments.model
    backend = TransformersBackend(TransformersOptions(model=model), arguments.device)
    backend._open()
    plain = Plain(backend, model)
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

    few, one = five[: 2 * arguments.batched], five[: 2 * arguments.one_by_one]
    methods: dict[str, tuple[list[ScoreRequest], Callable[[], Found]]] = {
        ENGINE: (five, lambda: engine(five)),
        "engine, no examples": (none, lambda: engine(none)),
        "batched, five examples": (few, lambda: plain.batched(few)),
        "the same, frugal": (few, lambda: plain.batched(few, frugal=True)),
        "one by one, five examples": (one, lambda: plain.one_by_one(one)),
        "one by one, frugal": (one, lambda: plain.one_by_one(one, frugal=True)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    found: dict[str, Found] = {}
    for _ in range(arguments.rounds):
        for name, (asked, work) in methods.items():
            took, found[name] = timed(work)
            # Of few pairs the lengths matter: their time is that of so many pairs as have as many tokens on average.
            size = sum(len(backend._encode(r.input)) for r in asked)
            every_size = sum(len(backend._encode(r.input)) for r in (none if asked is none else five))
            seconds[name].append(took * every_size / size / arguments.n)
            print(f"{name}: {took:.1f} s for {len(asked) // 2} pairs", file=sys.stderr, flush=True)
    base = statistics.median(seconds[ENGINE])
    print(f"{arguments.model}, {arguments.form} form, {tokens:.0f} tokens a prompt, medians of {arguments.rounds}\n")
    print("| method | pairs | pairs/s | the engine with five examples is |")
    print("| --- | --- | --- | --- |")
    for name, (asked, _) in methods.items():
        one_pair = statistics.median(seconds[name])
        print(f"| {name} | {len(asked) // 2} | {1 / one_pair:.2f} | {one_pair / base:.2f} times as fast |")
    print(f"\nExamples cost {base / statistics.median(seconds['engine, no examples']):.2f} times no examples.")
    for name in ("batched, five examples", "one by one, five examples"):
        apart = max(
            abs(_probability(values) - _probability(found[ENGINE][request])) for request, values in found[name].items()
        )
        print(f"Largest difference of P(A) to {name}: {apart:.1e}")


def _probability(logprobs: Sequence[float]) -> float:
    return float(torch.tensor(logprobs, dtype=torch.float64).softmax(0)[0])


if __name__ == "__main__":
    main()
