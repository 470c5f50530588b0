"""How often a text differs when it is made in another batch: float rounding, measured on this machine.

    python tests/benchmarks/batch_rounding.py [--prompts 100] [--tokens 64]

Every request has its own seed, so without rounding no text would differ. Greedy and sampled texts of the embedded model
alone, in batches of 8 and of 64.
"""

from __future__ import annotations

import argparse

from cai_core.models.catalog import model_path
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.records import ModelInput
from cai_plugins.backends.plugin import TransformersOptions
from cai_plugins.backends.transformers import TransformersBackend
from cai_plugins.prompts.builtin import BuiltinPrompts
from cai_plugins.prompts.plugin import BuiltinOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    prompts = BuiltinPrompts(BuiltinOptions(red_team=80, helpful=80)).load()[: args.prompts]
    for name, sampling in (
        ("greedy", Sampling(args.tokens, 0.0)),
        ("T = 1", Sampling(args.tokens, 1.0)),
        ("T = 0.7, top-p 0.9", Sampling(args.tokens, 0.7, 0.9)),
    ):
        texts: dict[int, dict[str, str]] = {}
        for rows in (1, 8, 64):
            options = TransformersOptions(model=str(model_path("smollm2-135m-instruct")), max_batch=rows)
            backend = TransformersBackend(options, "cpu")
            requests = [
                GenerateRequest(p.id, ModelInput(messages=p.messages), sampling, i) for i, p in enumerate(prompts)
            ]
            texts[rows] = {done.id: done.text for done in backend.generate(requests)}
            backend.close()
        for rows in (8, 64):
            differ = sum(texts[rows][key] != text for key, text in texts[1].items())
            print(f"{name}: {differ} of {len(prompts)} texts of {args.tokens} tokens differ, alone against {rows} rows")


if __name__ == "__main__":
    main()
