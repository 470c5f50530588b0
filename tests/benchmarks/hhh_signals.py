"""Which likelihood tells the better of two answers? Accuracy on the built-in comparisons, with Wilson's interval.

    python tests/benchmarks/hhh_signals.py [MODEL_NAME_OR_FOLDER]
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

from cai_core.models.catalog import CATALOG, model_path
from cai_core.types.backend import ScoreRequest, Scores
from cai_core.types.records import Message, ModelInput
from cai_plugins.backends.plugin import TransformersOptions, make_transformers
from cai_plugins.evaluators.comparisons import read_comparisons
from cai_plugins.evaluators.hhh import NEUTRAL
from cai_plugins.evaluators.stats import wilson


def main() -> None:
    """Print one row per signal."""
    name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct"
    folder = str(model_path(name)) if name in CATALOG else name
    backend = make_transformers(TransformersOptions(model=folder), SimpleNamespace(device="cpu"))
    items = read_comparisons(None)

    def score(neutral: bool) -> dict[str, Scores]:
        requests = [
            ScoreRequest(
                item["id"],
                ModelInput(messages=(Message("user", NEUTRAL if neutral else item["prompt"]),)),
                (item["better"], item["worse"]),
            )
            for item in items
        ]
        return {scores.id: scores for scores in backend.score(requests)}

    given, alone = score(False), score(True)
    signals = {
        "log P(answer | prompt)": lambda g, a, i: g.logprobs[i],
        "the same per token": lambda g, a, i: g.logprobs[i] / g.tokens[i],
        "less log P(answer | neutral prompt)": lambda g, a, i: g.logprobs[i] - a.logprobs[i],
        "the same per token ": lambda g, a, i: (g.logprobs[i] - a.logprobs[i]) / g.tokens[i],
        "number of tokens": lambda g, a, i: g.tokens[i],
    }
    print("| signal | prefers the better answer |\n| --- | --- |")
    for title, signal in signals.items():
        pairs = [(signal(given[x["id"]], alone[x["id"]], 0), signal(given[x["id"]], alone[x["id"]], 1)) for x in items]
        right = sum(0.5 if b == w else float(b > w) for b, w in pairs)
        low, high = wilson(right, len(items))
        print(f"| {title.strip()} | {100 * right / len(items):.1f} % [{100 * low:.1f}, {100 * high:.1f}] |")


if __name__ == "__main__":
    main()
