"""Speed of critique and revision: our engine, one prompt at a time, and fixed batches, side by side.

Prompts are those of hh-rlhf. ``--workload conversations``: one per human turn, with all that came before it, as in the
paper. ``--workload first-turns``: the first human turn alone. Every prompt gets an answer and two rounds of critique
and revision. ``--lengths forced``: every text has exactly ``--tokens`` tokens, so that ratios are those of times;
``natural``: texts end by themselves, after ``--tokens`` at most, and ratios are those of tokens per second.

    python tests/benchmarks/generation.py --prompts-from HH_RLHF_FILE [--shots 5]

prints for each workload and kind of length: seconds, tokens per second and ratios (medians over ``--repeats``
interleaved runs); the share of the machine's matrix-product speed that the useful operations reach; and the time that
the operations and the bytes would take at the speed of this machine's matrix product and memory. The plain loop runs on
``--plain`` prompts, its time is scaled. ``--device cuda``: on a GPU, in bfloat16; seconds, tokens and ratios alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from cai_core.constitution import load_constitution
from cai_core.models.catalog import model_path
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.records import Conversation, ModelInput
from cai_plugins._torch.decoding import _STATE
from cai_plugins.backends.plugin import TransformersOptions
from cai_plugins.backends.transformers import TransformersBackend
from cai_plugins.critiques.chat import ChatTemplate
from cai_plugins.critiques.paper import PaperTemplate
from cai_plugins.critiques.plugin import ChatOptions, PaperOptions
from cai_plugins.prompts.hh_rlhf import HHRLHFPrompts
from cai_plugins.prompts.plugin import HHRLHFOptions

ROUNDS = 2
TURNS = 1 + 2 * ROUNDS


class Chain:
    """What each turn of a prompt asks; texts go in as they came out."""

    def __init__(self, name: str, prompt: Conversation, shots: int) -> None:
        constitution = load_constitution("harmless")
        self.name = name
        self.seed = zlib.crc32(name.encode())
        self.prompt = prompt
        self.principles = constitution.principles
        self.template = (
            PaperTemplate(PaperOptions(shots=shots), constitution)
            if shots
            else ChatTemplate(ChatOptions(shots=0), constitution)
        )
        self.texts: list[str] = []

    def ask(self) -> ModelInput:
        turn = len(self.texts)
        if turn == 0:
            return self.template.answer(self.prompt)
        principle = self.principles[(self.seed + turn) % len(self.principles)]
        draft = self.texts[turn - 1 if turn % 2 else turn - 2] or "…"
        if turn % 2:
            return self.template.critique(self.prompt, draft, principle)
        return self.template.revision(self.prompt, draft, self.texts[turn - 1] or "…", principle)


class Plain:
    """``generate`` of transformers on batches, every turn from its beginning."""

    def __init__(self, engine: TransformersBackend, folder: str, tokens: int) -> None:
        self.engine = engine
        self.ends = engine._ends
        self.pad = engine._pad_id()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=engine._model.dtype).eval().to(engine.device)
        self.tokens = tokens
        self.natural = False

    @torch.inference_mode()
    def turn(self, chains: list[Chain]) -> int:
        inputs = [chain.ask() for chain in chains]
        ids, mask = self.engine._pad([self.engine._encode(one) for one in inputs])
        ends = list(self.ends) if self.natural else None
        config = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, max_new_tokens=self.tokens,
            min_new_tokens=None if self.natural else self.tokens, eos_token_id=ends, pad_token_id=self.pad,
        )  # fmt: skip
        out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
        count = 0
        for chain, given, row in zip(chains, inputs, out.tolist(), strict=True):
            end = next((i for i, t in enumerate(row) if self.natural and t in self.ends), len(row))
            count += min(end + 1, len(row))
            text = self.engine._tokenizer.decode(row[:end], skip_special_tokens=True)
            for stop in given.stop if self.natural else ():
                text = text.split(stop, 1)[0]
            chain.texts.append(text)
        return count

    def run(self, chains: list[Chain], batch: int) -> tuple[float, int]:
        start, count = time.perf_counter(), 0
        for first in range(0, len(chains), batch):
            for _ in range(TURNS):
                count += self.turn(chains[first : first + batch])
        return time.perf_counter() - start, count


def run_engine(engine: TransformersBackend, chains: list[Chain], tokens: int, natural: bool) -> tuple[float, int]:
    """The engine as the pipeline uses it: what follows from a text is among the next requests."""
    by_name = {chain.name: chain for chain in chains}
    ready: list[GenerateRequest] = []

    def request(chain: Chain) -> GenerateRequest:
        turn = len(chain.texts)
        given = chain.ask()
        given = given if natural else ModelInput(given.messages, given.text, given.prefill)
        parent = f"{chain.name}/{turn - 1}" if turn else ""
        return GenerateRequest(f"{chain.name}/{turn}", given, Sampling(tokens), chain.seed + turn, parent=parent)

    fresh = iter(chains)

    class Feed:
        def __iter__(self) -> Iterator[GenerateRequest]:
            return self

        def __next__(self) -> GenerateRequest:
            return ready.pop(0) if ready else request(next(fresh))

    start, count = time.perf_counter(), 0
    for done in engine.generate(Feed()):
        assert done.failure is None, done.failure
        chain = by_name[done.id.rpartition("/")[0]]
        chain.texts.append(done.text)
        count += done.tokens_out
        if len(chain.texts) < TURNS:
            ready.append(request(chain))
    return time.perf_counter() - start, count


def matmul_speed() -> float:
    """Operations per second of a float32 matrix product on this machine, the best of five."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(_seconds(lambda: a @ b) for _ in range(5))


def memory_speed() -> float:
    """Bytes per second that this machine reads from memory: the sum over 256 MB, the best of five."""
    numbers = torch.ones(64 * 1024 * 1024)
    return numbers.numel() * 4 / min(_seconds(numbers.sum) for _ in range(5))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Traffic:
    """What the forward passes of the engine's model do and read. Counted by a hook, from the shapes."""

    def __init__(self, engine: TransformersBackend) -> None:
        config = engine._model.config
        width = config.hidden_size // config.num_attention_heads
        layer = 2 * config.hidden_size * width * (config.num_attention_heads + config.num_key_value_heads)
        layer += 3 * config.hidden_size * config.intermediate_size
        self.body = config.num_hidden_layers * layer
        self.head = config.vocab_size * config.hidden_size
        self.per_token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * width  # bytes of keys, values
        self.per_pair = 4 * config.num_hidden_layers * config.num_attention_heads * width  # operations, query with key
        self.clear()
        engine._model.register_forward_pre_hook(self._count, with_kwargs=True)

    def clear(self) -> None:
        self.weights = self.cache = self.passes = self.pairs = 0

    def _count(self, module: object, args: object, given: dict[str, Any]) -> None:
        mask = given.get("attention_mask")
        if mask is None or mask.dim() != 4:  # a block that rows share: once each, too few to count
            return
        self.passes += 1
        self.weights += 4 * (self.body + self.head)
        # The last query of a row sees all of the row's columns and no padding.
        self.cache += int(mask[:, :, -1].sum()) * self.per_token
        self.pairs += int(mask.sum())
        blocks = _STATE.mask
        if blocks is not None:
            self.cache += int(blocks.any(0).sum()) * self.per_token  # read together by all rows
            self.pairs += int(blocks.sum()) * mask.shape[2]


@cache
def prompts_of(workload: str, path: Path) -> list[Conversation]:
    """Prompts in an order that their hashes decide."""
    options = HHRLHFOptions(path=path, heldout_share=0.0, turns="every")
    prompts = sorted(HHRLHFPrompts(options).load(), key=lambda p: p.id)
    if workload == "first-turns":
        return [p.messages for p in prompts if len(p.messages) == 1]
    return [p.messages for p in prompts]


def compare(
    engine: TransformersBackend, plain: Plain, traffic: Traffic, workload: str, natural: bool, args: argparse.Namespace
) -> None:
    prompts = prompts_of(workload, args.prompts_from)
    ends = plain.ends
    engine._decoder.ends = frozenset(ends if natural else ())
    engine._ends = ends if natural else ()
    plain.natural = natural

    def chains(n: int) -> list[Chain]:
        return [Chain(f"c{i}", prompt, args.shots) for i, prompt in enumerate(prompts[:n])]

    seconds: dict[str, list[float]] = {"engine": [], "batches of 32": [], "one at a time": []}
    counts: dict[str, int] = {}
    for repeat in range(args.repeats):
        before = dict(engine._decoder.shared)
        traffic.clear()
        took, counts["engine"] = run_engine(engine, chains(args.prompts), args.tokens, natural)
        computed = engine._decoder.shared["computed"] - before["computed"]
        padded = engine._decoder.shared["positions"] - before["positions"]
        seconds["engine"].append(took)
        took, counts["batches of 32"] = plain.run(chains(args.prompts), 32)
        seconds["batches of 32"].append(took)
        if repeat == 0 and args.plain:
            took, count = plain.run(chains(args.plain), 1)
            scale = args.prompts / args.plain
            seconds["one at a time"].append(took * scale)
            counts["one at a time"] = round(count * scale)
        print(json.dumps({name: [round(s, 1) for s in values] for name, values in seconds.items()}), flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items() if values}
    rates = {name: counts[name] / took for name, took in medians.items()}
    length = f"natural length, {args.tokens} tokens at most" if natural else f"{args.tokens} tokens"
    print(f"{workload}: {args.prompts} prompts, {TURNS} texts of {length} each, {args.shots} shots")
    for name, took in medians.items():
        print(f"{name:15} {took:8.1f} s {rates[name]:7.1f} tokens/s, engine is {rates['engine'] / rates[name]:.2f}x")
    if engine.device != "cpu":
        return
    useful = 2 * traffic.body * computed + 2 * traffic.head * counts["engine"]
    limit, stream = matmul_speed(), memory_speed()
    print(
        f"engine: {computed} tokens through the model ({padded - computed} more as padding) for {counts['engine']} new "
        f"ones; useful operations {useful / medians['engine'] / 1e9:.1f} of {limit / 1e9:.1f} GFLOP/s, "
        f"{useful / medians['engine'] / limit:.0%}"
    )
    work = (useful + traffic.pairs * traffic.per_pair) / limit
    read = (traffic.weights + traffic.cache) / stream
    print(
        f"at the speed of this machine: {work:.1f} s of operations ({limit / 1e9:.0f} GFLOP/s), {read:.1f} s to "
        f"read {traffic.weights / 1e9:.1f} GB of weights in {traffic.passes} passes, {traffic.cache / 1e9:.1f} GB of "
        f"keys and values ({stream / 1e9:.1f} GB/s); the engine took {medians['engine']:.1f} s"
    )
    if "one at a time" in rates:
        alone = counts["engine"] / rates["one at a time"]
        print(
            f"with this many passes, one prompt at a time could be beaten by {alone / (work + read):.1f}x with reading "
            f"and operations one after the other, by {alone / max(work, read):.1f}x with both at once\n",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts-from", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--plain", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="as in the paper's RL runs and our recipes")
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workload", choices=["conversations", "first-turns", "both"], default="both")
    parser.add_argument("--lengths", choices=["forced", "natural", "both"], default="both")
    parser.add_argument("--model", default=str(model_path("smollm2-135m-instruct")))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()

    engine = TransformersBackend(TransformersOptions(model=args.model), args.device)
    engine._open()
    traffic = Traffic(engine)
    plain = Plain(engine, args.model, args.tokens)
    warm = [Chain(f"c{i}", p, args.shots) for i, p in enumerate(prompts_of("first-turns", args.prompts_from)[:4])]
    run_engine(engine, warm, 4, natural=True)
    for workload in ("conversations", "first-turns") if args.workload == "both" else (args.workload,):
        for lengths in ("forced", "natural") if args.lengths == "both" else (args.lengths,):
            compare(engine, plain, traffic, workload, lengths == "natural", args)


if __name__ == "__main__":
    main()
