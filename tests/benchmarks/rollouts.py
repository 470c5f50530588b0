"""Sampling in RL: our rollouts beside the ``generate`` of TRL's GRPO loop, at equal tokens.

    python tests/benchmarks/rollouts.py [--model FOLDER] [--prompts 8] [--samples 8] [--tokens 64] [--natural]

Both hold the same policy (by default SmolLM2-135M from the catalog, with adapters as both have them by default) and
answer the same prompts, the built-in ones, ``--samples`` times each, at temperature 1 without top-k and top-p. TRL's
side is what ``GRPOTrainer`` calls in every step (``_generate_single_turn``: one padded batch, transformers'
``generate``); ours is what ``ppo`` calls. Every answer has exactly ``--tokens`` tokens, so the ratio of times is that
of speeds; with ``--natural`` answers end by themselves and the ratio is that of tokens per second, tokens counted up to
an answer's end. ``--repeats`` runs alternate after one that is not counted.

Printed: tokens per second of either side in each repeat, and the ratio of the medians; beside it the ratio of processor
seconds, which other programs on the machine disturb less. ``--device cuda`` samples on a GPU, in bfloat16; threads as
OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from trl import GRPOConfig, GRPOTrainer

from cai_core.models.catalog import model_path
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.records import ModelInput
from cai_plugins._torch.callbacks import quiet
from cai_plugins._torch.chat import Chat
from cai_plugins._torch.loading import load_causal, load_tokenizer
from cai_plugins._torch.lora import lora_config
from cai_plugins._torch.options import LoraOptions
from cai_plugins.prompts.builtin import BuiltinPrompts
from cai_plugins.prompts.plugin import BuiltinOptions
from cai_plugins.rl.live import Live

Side = Callable[[int], int]
"""The number of a repeat to the number of tokens that were sampled."""


def ours(folder: Path, prompts: list[Any], samples: int, tokens: int, natural: bool, device: str) -> Side:
    tokenizer = load_tokenizer(folder)
    chat = Chat(tokenizer, folder)
    model = load_causal(folder, device, all_weights=False)
    policy = get_peft_model(model, lora_config(LoraOptions(), "CAUSAL_LM"))
    rollouts = Live(policy, folder, tokenizer, SimpleNamespace(device=device), 1.0, 1).rollouts  # type: ignore[arg-type]
    rollouts.ends = frozenset([tokenizer.eos_token_id] if natural else [])
    assert rollouts.shares, "the decoder does not fit this model: a plain loop would be measured"

    def side(repeat: int) -> int:
        requests = [
            GenerateRequest(
                f"{prompt.id}/{k}", ModelInput(prompt.messages), Sampling(tokens, 1.0), 1_000_003 * repeat + 97 * i + k
            )
            for i, prompt in enumerate(prompts)
            for k in range(samples)
        ]
        ids = [chat.ids(prompt.messages, generation_prompt=True) for prompt in prompts for _ in range(samples)]
        return sum(map(len, rollouts.sample(requests, ids)))

    return side


def trl(folder: Path, prompts: list[Any], samples: int, tokens: int, natural: bool, device: str, scratch: Path) -> Side:
    tokenizer = load_tokenizer(folder)
    chat = Chat(tokenizer, folder)
    batch = len(prompts) * samples
    trainer = GRPOTrainer(
        model=load_causal(folder, device, all_weights=False),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(scratch), use_cpu=device == "cpu", bf16=device != "cpu", report_to="none",
            per_device_train_batch_size=batch,
            num_generations=samples, max_completion_length=tokens, temperature=1.0, top_k=0, top_p=1.0,
            generation_kwargs=None if natural else {"min_new_tokens": tokens},
        ),
        train_dataset=Dataset.from_list([{"prompt": chat.turns(prompt.messages)} for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=lora_config(LoraOptions(), "CAUSAL_LM"),
    )  # fmt: skip
    ids = [chat.ids(prompt.messages, generation_prompt=True) for prompt in prompts for _ in range(samples)]

    def side(repeat: int) -> int:
        torch.manual_seed(repeat)
        completions = trainer._generate_single_turn(ids, None, {}, samples)[0]
        return sum(map(len, completions))

    return side


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="a model folder; without it SmolLM2-135M-Instruct")
    for name, value in (("prompts", 8), ("samples", 8), ("tokens", 64), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--natural", action="store_true", help="answers end by themselves")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    quiet()
    folder = given.model or model_path("smollm2-135m-instruct")
    with tempfile.TemporaryDirectory() as scratch:
        source = BuiltinPrompts(BuiltinOptions(red_team=given.prompts, helpful=0))
        prompts = [prompt for prompt in source.load() if prompt.split == "train"][: given.prompts]
        assert len(prompts) == given.prompts, f"there are {len(prompts)} built-in prompts"
        shape = (folder, prompts, given.samples, given.tokens, given.natural, given.device)
        sides = {"ours": ours(*shape), "TRL": trl(*shape, Path(scratch))}
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        worked: dict[str, list[float]] = {name: [] for name in sides}
        threads = torch.get_num_threads()
        where = torch.cuda.get_device_name() if given.device == "cuda" else f"{threads} threads"
        print(f"{given.prompts} prompts x {given.samples} samples, {given.tokens} tokens, {where}")
        for repeat in range(given.repeats + 1):
            for name, side in sides.items():
                start, busy = time.perf_counter(), time.process_time()
                count = side(repeat)
                seconds, busy = time.perf_counter() - start, time.process_time() - busy
                if not given.natural:
                    assert count == given.prompts * given.samples * given.tokens, (name, count)
                if repeat:
                    speeds[name].append(count / seconds)
                    worked[name].append(count / busy)
                    print(
                        f"{name:5} {count} tokens, {seconds:.2f} s, {count / seconds:.1f} tokens/s, "
                        f"{count / busy:.1f} tokens per processor second",
                        flush=True,
                    )
        for text, found in (("time", speeds), ("processor time", worked)):
            ratio = statistics.median(found["ours"]) / statistics.median(found["TRL"])
            print(f"ratio of medians by {text}, ours / TRL: {ratio:.2f}")


if __name__ == "__main__":
    main()
