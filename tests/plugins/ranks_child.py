"""Trainings in each of the processes that a launcher started. ``python ranks_child.py MODEL FOLDER KIND...`` leaves
``FOLDER/KIND/RANK.json`` with the curve, the metrics and a sum of the weights, and the first process's model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from training import Context, turns

from cai_core.testing.rl import LetterE, Letters
from cai_core.types.labeler import Comparison, Label
from cai_core.types.prompts import Prompt
from cai_core.types.records import UnitFailure
from cai_core.types.reward import Exchange, NoReward, Preference
from cai_core.types.trainer import Example, TrainResult
from cai_plugins.principles.samplers import Uniform

# 7 rows and batches of 4: the last batch of a pass is not full, and no half of it either.
EXAMPLES = [
    Example(f"e{i}", turns(f"How do I bake {i} loaves?", f"Mix flour {i} times. " * (1 + i % 3))) for i in range(7)
]
PAIRS = [
    Preference(f"c{i}", turns(f"How do I bake {i} loaves?"), "Mix flour. " * (1 + i % 4), "No.", 0.4 + 0.1 * (i % 5))
    for i in range(7)
]
PROMPTS = [Prompt(f"p{i}", turns(f"How do I bake {'very ' * (i % 3)}good bread {i}?")) for i in range(5)]


def sft(model: Path, context: Any, out: Path, micro: int, **changed: Any) -> TrainResult:
    from cai_plugins.trainers.plugin import SFTOptions, make_sft

    options = SFTOptions(
        **{"learning_rate": 1e-2, "batch_size": 4, "micro_batch": micro, "epochs": 2, "save_steps": 1, **changed}
    )
    return make_sft(options, context).train(model, EXAMPLES, out)


def preference(model: Path, context: Any, out: Path, micro: int, **changed: Any) -> TrainResult:
    from cai_plugins.rewards.plugin import PreferenceOptions, make_preference

    small = {"learning_rate": 1e-2, "batch_size": 4, "micro_batch": micro, "epochs": 3, "save_steps": 1}
    options = PreferenceOptions(**{**small, "helpful": "none", "heldout": 0, "centering": 0.01, **changed})
    return make_preference(options, context).fit(model, PAIRS, out)


def dpo(model: Path, context: Any, out: Path, micro: int, **changed: Any) -> TrainResult:
    from cai_plugins.rl.plugin import DPOOptions, make_dpo

    context.labels = PAIRS
    options = DPOOptions(learning_rate=1e-2, batch_size=4, micro_batch=micro, epochs=2, save_steps=1, **changed)
    return make_dpo(options, context).train(model, [], NoReward(), out)


def ppo(model: Path, context: Any, out: Path, micro: int, **changed: Any) -> TrainResult:
    from cai_plugins.rl.plugin import PPOOptions, make_ppo

    # Twelve answers, minibatches of six, three to each of two processes.
    options = PPOOptions(
        prompts_per_step=3, samples_per_prompt=4, minibatches=2, epochs=2, max_new_tokens=6,
        learning_rate=1e-3, kl_control="adaptive", kl_target=0.01, save_steps=2, micro_batch=micro,
        **{"steps": 3, "lora": None, "whiten_rewards": True, "missing_end_penalty": 0.1, **changed},
    )  # fmt: skip
    return make_ppo(options, context).train(model, PROMPTS, LetterE(), out)


def online_dpo(
    model: Path, context: Any, out: Path, micro: int, *, judged: bool = False, judge: bool = False, **changed: Any
) -> TrainResult:
    from cai_core.testing.base import local_model
    from cai_plugins.labelers.plugin import LogprobOptions, make_logprob
    from cai_plugins.rl.plugin import OnlineDPOOptions, make_oaif, make_online_dpo

    if judged:
        context.components |= {"labeler": Unsure(), "principle_sampler": Uniform(1)}
    if judge:
        context.backends["judge"] = local_model(model)
        context.components["labeler"] = make_logprob(LogprobOptions(shots=0), context)
    options = OnlineDPOOptions(
        prompts_per_step=4, max_new_tokens=6, learning_rate=1e-3, save_steps=2, micro_batch=micro,
        **{"steps": 3, "lora": None, **changed},
    )  # fmt: skip
    made = make_oaif(options, context) if judged else make_online_dpo(options, context)
    return made.train(model, PROMPTS, LetterE(), out)


class Unsure(Letters):
    """Fails on some answers."""

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        for asked, label in zip(comparisons, super().label(comparisons), strict=True):
            fails = len(asked.response_a) % 4 == 1
            yield Label(asked.id, None, failure=UnitFailure("unparseable", "no verdict")) if fails else label


class Likes(LetterE):
    """A reward with a favourite share of the letter e."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [-abs(share - 0.06) for share in super().score(exchanges)]


def watched(
    model: Path, context: Any, out: Path, micro: int, *, call: Callable[..., TrainResult], **changed: Any
) -> TrainResult:
    """With looks, which the processes must agree on."""
    context.heldout = Likes()
    result = call(model, context, out, micro, validation={"every": 1, "samples": 8}, **changed)
    rows = result.extra["validation"]["rows"]
    assert len(rows) > 1
    seen = {f"look_{i}_{name}": value for i, row in enumerate(rows) for name, value in row.items()}
    return replace(result, metrics={**result.metrics, **seen})


def grpo(model: Path, context: Any, out: Path, micro: int, **changed: Any) -> TrainResult:
    from cai_plugins.rl.plugin import GRPOOptions, make_grpo

    options = GRPOOptions(
        steps=2, prompts_per_step=2, samples_per_prompt=4, max_new_tokens=6, learning_rate=1e-2, micro_batch=micro,
        **changed,
    )  # fmt: skip
    return make_grpo(options, context).train(model, PROMPTS, LetterE(), out)


def best_of_n(model: Path, context: Any, out: Path, micro: int) -> TrainResult:
    from cai_core.testing.base import local_model
    from cai_plugins.rl.plugin import BestOfNOptions, make_best_of_n
    from cai_plugins.trainers.plugin import SFTOptions, make_sft

    context.backends["policy"] = local_model(model)
    tuning = SFTOptions(learning_rate=1e-2, batch_size=4, micro_batch=micro, save_steps=1)
    context.components["trainer"] = make_sft(tuning, context)
    options = BestOfNOptions(n=4, max_new_tokens=6, chunk=3)
    return make_best_of_n(options, context).train(model, PROMPTS, LetterE(), out)


KINDS: dict[str, tuple[Callable[..., TrainResult], int, dict[str, Any]]] = {
    # kind -> what trains, micro-batch in one process, options
    "sft": (sft, 2, {}),
    "sft-packed": (sft, 2, {"packing": True, "max_length": 64, "lora": None}),
    "preference": (preference, 2, {}),
    "preference-head": (preference, 2, {"layers": 0}),
    "dpo": (dpo, 2, {"snapshots": (2,)}),
    "ppo": (ppo, 3, {"snapshots": (2,)}),
    "ppo-lora": (ppo, 3, {"lora": {"rank": 2}, "critic": "separate", "snapshots": (1,)}),
    "online_dpo": (online_dpo, 2, {"snapshots": (1,)}),
    "oaif": (online_dpo, 2, {"judged": True, "lora": {"rank": 2}}),
    "oaif-judge": (online_dpo, 2, {"judged": True, "judge": True}),
    "best_of_n": (best_of_n, 2, {}),
    "sft-long": (sft, 2, {"epochs": 20}),
    "ppo-long": (ppo, 3, {"steps": 16}),
    "online_dpo-long": (online_dpo, 2, {"steps": 24, "lora": {"rank": 2}}),
    "grpo": (grpo, 4, {}),
    "grpo-watched": (watched, 4, {"call": grpo, "beta": 0.0}),  # without a KL in its loss, it is measured beside it
    "ppo-watched": (watched, 3, {"call": ppo, "lora": {"rank": 2}, "critic": "separate"}),
    "dpo-watched": (watched, 2, {"call": dpo, "lora": None}),
    "online_dpo-watched": (watched, 2, {"call": online_dpo}),
}


def train(kind: str, model: Path, folder: Path, number: int) -> None:
    call, micro, options = KINDS[kind]
    result = call(model, Context(folder / "w"), folder / f"out-{number}", micro, **options)
    found = {"curve": [dict(row) for row in result.curve], "metrics": dict(result.metrics), "notes": list(result.notes)}
    (folder / f"{number}.json").write_text(json.dumps(found), encoding="utf-8")


def train_all(number: int) -> None:
    """What the command line asks for, in process ``number``."""
    for name in sys.argv[3:]:
        target = Path(sys.argv[2]) / name
        target.mkdir(parents=True, exist_ok=True)
        train(name, Path(sys.argv[1]), target, number)


if __name__ == "__main__":
    from cai_plugins._torch.ranks import disconnect, rank

    torch.set_num_threads(1)
    train_all(rank())
    disconnect()
