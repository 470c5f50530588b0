"""A training in a process of its own, to be killed. ``python train_child.py KIND MODEL WORKDIR OUT DEVICE`` prints
steps, and at the end the curve."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from training import Context, turns

from cai_core.testing.rl import LetterE
from cai_core.types.prompts import Prompt
from cai_core.types.reward import Exchange, NoReward, Preference
from cai_core.types.trainer import Example


def train(kind: str, model: Path, workdir: Path, out: Path, device: str) -> None:
    context = Context(workdir)
    context.device = device
    kind, _, watched = kind.partition("-")
    looks: dict[str, Any] = {}
    if watched:  # a held-out reward that likes some policy on the way best
        context.heldout = Likes()
        looks = {"validation": {"every": 2, "prompts": 1, "samples": 4, "patience": None}}
    report = context.progress.update

    def update(done: int, total: int, note: str = "") -> None:
        report(done, total, note)
        print(f"step {done}", flush=True)

    context.progress.update = update  # type: ignore[method-assign]
    if kind == "sft":
        from cai_plugins.trainers.plugin import SFTOptions, make_sft

        examples = [
            Example(f"e{i}", turns(f"How do I bake {i} loaves?", f"Mix flour {i} times." * (1 + i % 3)))
            for i in range(24)
        ]
        options = SFTOptions(learning_rate=1e-2, batch_size=4, save_steps=1, epochs=2)
        result = make_sft(options, context).train(model, examples, out)
    elif kind == "dpo":
        from cai_plugins.rl.plugin import DPOOptions, make_dpo

        context.labels = comparisons()
        dpo = DPOOptions(
            learning_rate=1e-2, batch_size=4, micro_batch=2, save_steps=1, epochs=2, snapshots=(5,), **looks
        )
        result = make_dpo(dpo, context).train(model, [], NoReward(), out)
    elif kind in ("grpo", "rloo"):
        from cai_plugins.rl.plugin import GRPOOptions, RLOOOptions, make_grpo, make_rloo

        prompts = [Prompt(f"p{i}", turns(f"How do I bake {i} loaves?")) for i in range(5)]
        # Two updates per batch of samples: a kill between them has to draw the batch again.
        small = {"steps": 12, "prompts_per_step": 2, "samples_per_prompt": 4, "max_new_tokens": 8, "save_steps": 1}
        group = {**small, **looks, "updates_per_batch": 2, "learning_rate": 1e-2, "micro_batch": 4, "snapshots": (4,)}
        algorithm = (
            make_grpo(GRPOOptions(**group), context) if kind == "grpo" else make_rloo(RLOOOptions(**group), context)
        )
        result = algorithm.train(model, prompts, LetterE(), out)
    elif kind == "ppo":
        from cai_plugins.rl.plugin import PPOOptions, make_ppo

        prompts = [Prompt(f"p{i}", turns(f"How do I bake {i} loaves?")) for i in range(7)]
        # Checkpoints at every second step: a kill between them has to do a step again.
        ppo = PPOOptions(
            steps=12, prompts_per_step=3, samples_per_prompt=2, minibatches=2, epochs=2, max_new_tokens=6,
            learning_rate=1e-2, kl_control="adaptive", schedule="cosine", save_steps=3 if watched else 2,
            snapshots=(5,), **looks,
        )  # fmt: skip
        result = make_ppo(ppo, context).train(model, prompts, LetterE(), out)
    elif kind == "online_dpo":
        from cai_plugins.rl.plugin import OnlineDPOOptions, make_online_dpo

        prompts = [Prompt(f"p{i}", turns(f"How do I bake {i} loaves?")) for i in range(7)]
        online = OnlineDPOOptions(
            steps=12, prompts_per_step=4, micro_batch=2, max_new_tokens=6, learning_rate=1e-2, schedule="cosine",
            save_steps=3 if watched else 2, snapshots=(5,), **looks,
        )  # fmt: skip
        result = make_online_dpo(online, context).train(model, prompts, LetterE(), out)
    else:
        from cai_plugins.rewards.plugin import PreferenceOptions, make_preference

        preference = PreferenceOptions(
            learning_rate=1e-2, batch_size=4, micro_batch=2, save_steps=1, epochs=2, helpful="none", heldout=0
        )
        result = make_preference(preference, context).fit(model, comparisons(), out)
    print("curve", json.dumps([[dict(row) for row in result.curve], dict(result.extra)]), flush=True)


class Likes:
    """A reward with a favourite share of the letter e."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [-abs(share - 0.06) for share in LetterE().score(exchanges)]


def comparisons() -> list[Preference]:
    return [
        Preference(
            f"c{i}", turns(f"How do I bake {i} loaves?"), "Mix flour. " * (1 + i % 4), "No.", 0.4 + 0.1 * (i % 5)
        )
        for i in range(24)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], *map(Path, sys.argv[2:5]), sys.argv[5])
