"""``above_mean``: sample, keep what the reward likes better than the average of its prompt, fine-tune on it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from cai_core.errors import CAIError, UserError
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.context import StageContext
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message, ModelInput
from cai_core.types.reward import Exchange, RewardModel
from cai_core.types.trainer import Example, TrainResult

from cai_extras.plugin import AboveMeanOptions


class AboveMean:
    """A sample depends on the seed, its prompt and its number alone. After a crash the samples are drawn again, the
    same ones, and the trainer goes on from its own checkpoint."""

    def __init__(self, options: AboveMeanOptions, context: StageContext) -> None:
        self.options = options
        self.context = context

    def train(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel, out: Path) -> TrainResult:
        """See ``RLAlgorithm``. One row of the curve per prompt."""
        if not prompts:
            raise UserError("no prompt to sample answers for", where="rl", hint="give prompts of split train")
        samples = self._samples(prompts)
        examples: list[Example] = []
        curve = []
        for prompt in prompts:
            texts = samples[prompt.id]
            rewards = reward.score([Exchange(f"{prompt.id}/{k}", prompt.messages, t) for k, t in enumerate(texts)])
            if not all(map(math.isfinite, rewards)):
                raise CAIError(f"a reward of prompt {prompt.id!r} is not finite")
            if not rewards:
                continue
            mean = math.fsum(rewards) / len(rewards)
            for number, (text, value) in enumerate(zip(texts, rewards, strict=True)):
                if value > mean:
                    turns = (*prompt.messages, Message("assistant", text))
                    examples.append(Example(f"{prompt.id}/{number}", turns, "above_mean"))
            curve.append({"step": float(len(curve) + 1), "reward": mean})
        if not examples:
            raise CAIError("no sample is better than another", hint="raise the temperature, or look at the reward model")
        self.context.backend("policy").close()  # the trainer needs the memory
        tuned = self.context.component("trainer").train(policy, examples, out)
        metrics = {"prompts": float(len(curve)), "kept": float(len(examples))}
        return TrainResult({**metrics, **{f"sft_{k}": v for k, v in tuned.metrics.items()}}, curve, tuned.notes)

    def _samples(self, prompts: Sequence[Prompt]) -> dict[str, list[str]]:
        options = self.options
        sampling = Sampling(options.max_new_tokens, options.temperature)
        requests = [
            GenerateRequest(f"{prompt.id}\x1f{k}", ModelInput(messages=prompt.messages), sampling, self._seed(prompt, k))
            for prompt in prompts
            for k in range(options.samples)
        ]
        found: dict[str, dict[int, str]] = {prompt.id: {} for prompt in prompts}
        for done, completion in enumerate(self.context.backend("policy").generate(requests), 1):
            name, _, number = completion.id.rpartition("\x1f")
            if completion.failure is None:
                found[name][int(number)] = completion.text
            self.context.progress.update(done, len(requests), "samples")
        # Completions come in any order; the examples' order must not depend on it.
        return {name: [texts[k] for k in sorted(texts)] for name, texts in found.items()}

    def _seed(self, prompt: Prompt, number: int) -> int:
        digest = hashlib.sha256(f"{self.context.seed}/{prompt.id}/{number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1
