"""Speed of critique and revision: our engine, one prompt at a time, and fixed batches, side by side.

Prompts are those of hh-rlhf, one per human turn. Every prompt gets an answer and two rounds of critique and revision.
Token counts are equal (every text has exactly ``--tokens`` tokens), so that the ratios are those of times; with
``--natural`` the texts end by themselves.

    python tests/benchmarks/generation.py --prompts-from HH_RLHF_FILE [--shots 5]

prints seconds, tokens per second, ratios (medians over ``--repeats`` interleaved runs) and the share of the machine's
matrix-product speed that the useful operations reach. The plain loop runs on ``--plain`` prompts, its time is scaled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from cai_core.constitution import load_constitution
from cai_core.models.catalog import model_path
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.records import Conversation, ModelInput
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

    def __init__(self, engine: TransformersBackend, folder: str, tokens: int, natural: bool) -> None:
        self.engine = engine
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokens = tokens
        self.natural = natural

    @torch.inference_mode()
    def turn(self, chains: list[Chain]) -> int:
        inputs = [chain.ask() for chain in chains]
        ids, mask = self.engine._pad([self.engine._encode(one) for one in inputs])
        ends = list(self.engine._ends) if self.natural else None
        config = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, max_new_tokens=self.tokens,
            min_new_tokens=None if self.natural else self.tokens, eos_token_id=ends, pad_token_id=self.engine._pad_id(),
        )  # fmt: skip
        out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
        count = 0
        for chain, given, row in zip(chains, inputs, out.tolist(), strict=True):
            end = next((i for i, t in enumerate(row) if self.natural and t in self.engine._ends), len(row))
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
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts-from", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--plain", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="as in the paper's RL runs and our recipes")
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--natural", action="store_true", help="only natural lengths")
    parser.add_argument("--model", default=str(model_path("smollm2-135m-instruct")))
    args = parser.parse_args()

    # One prompt per human turn, as in the paper (section 3.2); which ones, their hashes decide.
    options = HHRLHFOptions(path=args.prompts_from, heldout_share=0.0, turns="every")
    prompts = [p.messages for p in sorted(HHRLHFPrompts(options).load(), key=lambda p: p.id)]
    engine = TransformersBackend(TransformersOptions(model=args.model), "cpu")
    engine._open()
    if not args.natural:
        engine._decoder.ends = engine._ends = ()
    plain = Plain(engine, args.model, args.tokens, args.natural)

    def chains(n: int) -> list[Chain]:
        return [Chain(f"c{i}", prompt, args.shots) for i, prompt in enumerate(prompts[:n])]

    run_engine(engine, chains(4), 4, args.natural)  # warm
    seconds: dict[str, list[float]] = {"engine": [], "batches of 32": [], "one at a time": []}
    counts: dict[str, int] = {}
    for repeat in range(args.repeats):
        before = dict(engine._decoder.shared)
        took, counts["engine"] = run_engine(engine, chains(args.prompts), args.tokens, args.natural)
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
    config = engine._model.config
    body = sum(p.numel() for p in engine._model.parameters()) - engine._model.get_input_embeddings().weight.numel()
    head = config.vocab_size * config.hidden_size
    useful = 2 * body * computed + 2 * head * counts["engine"]
    limit = matmul_speed()
    length = "natural lengths" if args.natural else f"{args.tokens} tokens"
    print(f"{args.prompts} prompts, {TURNS} texts of {length} each, {args.shots} shots")
    for name, took in medians.items():
        print(f"{name:15} {took:8.1f} s {rates[name]:7.1f} tokens/s, engine is {rates['engine'] / rates[name]:.2f}x")
    print(
        f"engine: {computed} tokens through the model ({padded - computed} more as padding); "
        f"useful operations {useful / medians['engine'] / 1e9:.1f} of {limit / 1e9:.1f} GFLOP/s, "
        f"{useful / medians['engine'] / limit:.0%}"
    )


if __name__ == "__main__":
    main()
