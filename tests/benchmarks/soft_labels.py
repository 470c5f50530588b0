"""Soft targets against thresholded ones in a world whose probabilities are known.

    python tests/benchmarks/soft_labels.py [--seeds 20]

A Bradley-Terry world: an answer is 16 random numbers, its true reward is a fixed random network of them, and A is
preferred with the sigmoid of the difference of rewards, scaled so that the preferred side's median probability is 0.7
(that of a judge that is often unsure). A learner of another width sees 600 pairs with a label each: the probability
(soft), whether it is above one half (thresholded), or one draw from it (drawn, what asking one person once gives). It
learns with the loss of the `preference` component, and is measured on 4,000 other pairs against the true
probabilities: accuracy (side of the true probability), calibration error (ECE) and Brier score. `noise` is the standard
deviation of an error in the logit of the labeler; the labels of all three kinds come from what the labeler believes.

Printed: means over the seeds, and differences to soft, paired by seed, with Student's 95 % intervals. Every seed has a
world, pairs and a learner of its own; the kinds of labels share them.

Not covered: language models; labelers whose error depends on the answer; rescaling of scores afterwards, which repairs
a part of the calibration error; choosing the training length by held-out data (few and many passes are shown instead).
"""

from __future__ import annotations

import argparse
import time

import torch
from scipy.stats import ttest_rel
from torch import Tensor, nn

from cai_core.calibration import accuracy, brier, calibration_error
from cai_plugins.rewards.losses import preference_loss

FEATURES, TRAIN, TEST, BATCH = 16, 600, 4000, 32
MEDIAN = 0.7
KINDS = ("soft", "thresholded", "drawn")
MEASURES = {"accuracy": accuracy, "ECE": calibration_error, "Brier": brier}


def world(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of A and B and the true margin of the training pairs, then of the test pairs, stacked."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(TRAIN + TEST, FEATURES, generator=generator) for _ in range(2))
    first = torch.randn(FEATURES, 32, generator=generator) / FEATURES**0.5
    second = torch.randn(32, generator=generator)
    margin = (torch.tanh(a @ first) - torch.tanh(b @ first)) @ second
    wanted = torch.logit(torch.tensor(MEDIAN)).item()
    return a, b, margin * wanted / margin.abs().median(), torch.randn(TRAIN, generator=generator)


def learner(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 1))


def learn(seed: int, kind: str, noise: float, passes: tuple[int, ...]) -> dict[int, dict[str, float]]:
    """passes -> measure -> value."""
    a, b, margin, error = world(seed)
    believed = torch.sigmoid(margin[:TRAIN] + noise * error)
    generator = torch.Generator().manual_seed(seed + 1)
    draw = torch.rand(TRAIN, generator=generator)
    p = {"soft": believed, "thresholded": (believed > 0.5).float(), "drawn": (draw < believed).float()}[kind]
    model = learner(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    found = {}
    for epoch in range(1, max(passes) + 1):
        for rows in torch.randperm(TRAIN, generator=generator).split(BATCH):
            optimizer.zero_grad()
            score_a, score_b = model(a[rows])[:, 0], model(b[rows])[:, 0]
            preference_loss(score_a, score_b, p[rows], torch.ones(len(rows))).mean().backward()
            optimizer.step()
        if epoch in passes:
            with torch.inference_mode():
                q = torch.sigmoid((model(a[TRAIN:]) - model(b[TRAIN:]))[:, 0]).double().tolist()
            target = torch.sigmoid(margin[TRAIN:]).double().tolist()
            found[epoch] = {name: float(measure(q, target) or 0.0) for name, measure in MEASURES.items()}
    return found


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    passes = (3, 10, 40)
    torch.set_num_threads(1)
    start = time.perf_counter()
    results = {
        (noise, kind): [learn(seed, kind, noise, passes) for seed in range(options.seeds)]
        for noise in (0.0, 1.0)
        for kind in KINDS
    }
    print(f"{options.seeds} seeds, {TRAIN} pairs to learn from, {TEST} held out; median preference {MEDIAN}.\n")
    print("| noise | passes | labels | " + " | ".join(f"{name} | less soft [95 %]" for name in MEASURES) + " |")
    print("| --- | --- | --- |" + " --- | --- |" * len(MEASURES))
    for noise in (0.0, 1.0):
        for count in passes:
            for kind in KINDS:
                cells = []
                for name in MEASURES:
                    mine = [run[count][name] for run in results[noise, kind]]
                    soft = [run[count][name] for run in results[noise, "soft"]]
                    cells.append(f"{sum(mine) / len(mine):.3f}")
                    if kind == "soft":
                        cells.append("")
                    else:
                        low, high = ttest_rel(mine, soft).confidence_interval(0.95)
                        difference = sum(mine) / len(mine) - sum(soft) / len(soft)
                        cells.append(f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]")
                print(f"| {noise:g} | {count} | {kind} | " + " | ".join(cells) + " |")
    print(f"\n{time.perf_counter() - start:.0f} s on one thread.")


if __name__ == "__main__":
    main()
