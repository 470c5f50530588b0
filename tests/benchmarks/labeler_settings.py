"""Which settings of the labeler ``logprob`` give the strongest true signal with a given judge?

Accuracy on comparisons with a known answer (the built-in 80, and optionally the authors' 438 HHH items from a file of
yours), with Wilson's interval; the mean of P(better) - 0.5 in standard errors (z: above 2 is a signal); answers that
change with the order; probability on the two letters; pairs per second on this machine. Both orders are averaged.

    python tests/benchmarks/labeler_settings.py [--hhh 438HHHEvaluations.jsonl] [--limit N] [--model NAME_OR_FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cai_core.constitution import load_constitution
from cai_core.models.catalog import CATALOG, model_path
from cai_core.types.labeler import Comparison
from cai_core.types.records import Message
from cai_plugins.backends.plugin import TransformersOptions, make_transformers
from cai_plugins.evaluators.comparisons import better_is_b, read_comparisons
from cai_plugins.evaluators.stats import wilson
from cai_plugins.labelers.plugin import LogprobOptions, make_logprob

# (format, shots, constitution, principles per comparison; 0 is all)
SETTINGS = [
    *((form, shots, "harmless", 1) for form in ("paper", "chat") for shots in (0, 2, 5)),
    *((form, shots, "hhh", 1) for form in ("paper", "chat") for shots in (0, 2, 5)),
    ("paper", 0, "hhh", 0),
    ("chat", 0, "hhh", 0),
    ("chat", 5, "hhh", 0),
]


def hhh_items(path: Path, limit: int | None) -> list[dict[str, Any]]:
    """The authors' items: the conversation is text with Human/Assistant tags and one pair of answers."""
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        text = row["prompt"]
        conversation = text.partition("conversation between a human and an assistant:")[2].rpartition("\n\n\n")[0]
        turns = []
        for part in conversation.split("\n\nHuman:")[1:]:
            human, *assistant = part.split("\n\nAssistant:")
            turns.append(Message("user", human.strip()))
            turns += [Message("assistant", answer.strip()) for answer in assistant]
        pair = [option.strip()[3:].strip().removeprefix("[[[").removesuffix("]]]") for option in _options(text)]
        better = 0 if row["corrects"][0].strip() == "(A)" else 1
        items.append(
            {"id": f"hhh-{number}", "messages": tuple(turns), "better": pair[better], "worse": pair[1 - better]}
        )
    items.sort(key=lambda item: hashlib.sha256(item["id"].encode()).digest())
    return items[:limit]


def _options(prompt: str) -> list[str]:
    tail = prompt.rpartition(" Options:")[2].rpartition("\n\nThe answer is:")[0]
    a, _, b = tail.partition("\n (B) ")
    return [a.strip(), "(B) " + b]


def measure(items: list[dict[str, Any]], backend: Any, setting: tuple[str, int, str, int]) -> str:
    """One row of the table."""
    form, shots, name, several = setting
    constitution = load_constitution(name, Path())
    context = SimpleNamespace(seed=0, constitution=constitution, backend=lambda role: backend)
    labeler = make_logprob(LogprobOptions(format=form, shots=shots), context)
    principles = [p for p in constitution.principles if p.comparison]
    asked = []
    for item in items:
        drawn = tuple(principles) if not several else (random.Random(item["id"]).choice(principles),)
        pair = (item["better"], item["worse"])[:: -1 if better_is_b(item["id"]) else 1]
        asked.append(Comparison(item["id"], item["messages"], pair[0], pair[1], drawn, 0))
    start = time.perf_counter()
    labels = {label.id: label for label in labeler.label(asked)}
    seconds = time.perf_counter() - start
    good = [label for label in labels.values() if label.failure is None]
    margins = [(1 - x.p_a if better_is_b(x.id) else x.p_a) - 0.5 for x in good]
    right = sum(0.5 if m == 0 else float(m > 0) for m in margins)
    low, high = wilson(right, len(good))
    z = statistics.fmean(margins) / (statistics.stdev(margins) / math.sqrt(len(margins)))
    flips = statistics.fmean((x.evidence["p_a_first"] > 0.5) != (x.evidence["p_a_second"] > 0.5) for x in good)
    mass = statistics.fmean(x.evidence["mass"] for x in good)
    gap = statistics.fmean(abs(m) for m in margins)
    return (
        f"| {form} | {shots} | {name} | {several if several else 'all'} | {100 * right / len(good):.1f} % "
        f"[{100 * low:.1f}, {100 * high:.1f}] | {len(good)} | {z:+.1f} | {100 * flips:.0f} % | {100 * mass:.0f} % | "
        f"{gap:.4f} | {len(good) / seconds:.2f} |"
    )


def main() -> None:
    """Print one table per set of items."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hhh", type=Path, help="the authors' 438HHHEvaluations.jsonl")
    parser.add_argument("--limit", type=int, help="so many of the authors' items, by hash")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the settings to measure, from 0")
    arguments = parser.parse_args()
    model = str(model_path(arguments.model)) if arguments.model in CATALOG else arguments.model
    backend = make_transformers(TransformersOptions(model=model), SimpleNamespace(device="cpu"))
    sets = {"built-in": [{**i, "messages": (Message("user", i["prompt"]),)} for i in read_comparisons(None)]}
    if arguments.hhh:
        sets["the authors' HHH items"] = hhh_items(arguments.hhh, arguments.limit)
    for title, items in sets.items():
        print(f"\n{title}, {len(items)} comparisons, {arguments.model}\n")
        print("| form | shots | constitution | principles | accuracy | n | z | flips | mass | gap | pairs/s |")
        print("|" + " --- |" * 11, flush=True)
        for number, setting in enumerate(SETTINGS):
            if arguments.only is None or number in arguments.only:
                print(measure(items, backend, setting), flush=True)


if __name__ == "__main__":
    main()
