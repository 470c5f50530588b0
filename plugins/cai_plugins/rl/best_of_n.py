"""Best-of-n: sample n answers per prompt, keep the one with the highest reward, fine-tune on them.

Also called rejection sampling; the simplest improvement against a reward, and the baseline that others have to beat.
The policy that always answers with the best of n is at most log n - (n-1)/n nats from the policy as given; the one
fine-tuned on such answers comes near it as far as the trainer gets. One round; nothing of the rejected answers is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cai_core.errors import CAIError, UserError
from cai_core.types.backend import Completion, GenerateRequest, Sampling
from cai_core.types.context import StageContext
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message, ModelInput
from cai_core.types.reward import Exchange, RewardModel
from cai_core.types.trainer import Example, TrainResult
from cai_plugins._torch.chat import Chat
from cai_plugins._torch.loading import load_tokenizer
from cai_plugins._torch.ranks import connect, gather, rank
from cai_plugins._torch.seeding import derived
from cai_plugins.rl.by_n import Scored, by_n
from cai_plugins.rl.checks import check_answers, check_ends, check_signal, finite_rewards
from cai_plugins.rl.plugin import BestOfNOptions
from cai_plugins.rl.prompts import fitting, left_out


class BestOfN:
    """See ``RLAlgorithm``. A sample depends on the stage's seed, its prompt and its number alone; samples survive a
    crash and are not drawn again. The curve has one row per ``chunk`` of prompts, that of the fine-tuning is in
    ``extra["sft_curve"]``. With a held-out reward, ``extra["validation"]`` has both rewards for 1, 2, 4, ...
    samples."""

    def __init__(self, options: BestOfNOptions, context: StageContext) -> None:
        self.options = options
        self.context = context

    def train(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel, out: Path) -> TrainResult:
        """See ``RLAlgorithm``. The backend in the role "policy" must hold the model ``policy``."""
        tokenizer = load_tokenizer(policy)
        check_ends(tokenizer, policy)
        given = prompts[: self.options.prompts]
        prompts, _ = fitting(Chat(tokenizer, policy), policy, given, self.options.max_new_tokens)
        connect(self.context.device)
        # Of several processes the first draws and scores, and the others wait; the fine-tuning is shared.
        found = gather(self._best(policy, prompts, reward) if rank() == 0 else None)[0]
        texts = dict(found["texts"])
        examples = [
            Example(prompt.id, (*prompt.messages, Message("assistant", texts[i])), "best_of_n")
            for i, prompt in enumerate(prompts)
            if i in texts
        ]
        if rank() == 0:
            self.context.backend("policy").close()  # the trainer needs the memory
        tuned = self.context.component("trainer").train(policy, examples, out)
        return TrainResult(
            metrics={**{f"sft_{name}": value for name, value in tuned.metrics.items()}, **found["metrics"]},
            curve=found["curve"],
            notes=[*left_out(given, prompts), *found["notes"], *tuned.notes],
            extra={"sft_curve": [dict(row) for row in tuned.curve], "validation": found["validation"]},
        )

    def _best(self, policy: Path, prompts: Sequence[Prompt], reward: RewardModel) -> dict[str, Any]:
        """The number of each prompt with its best answer (``texts``), and what there is to say of the samples."""
        options, n = self.options, self.options.n
        texts: list[tuple[int, str]] = []
        curve: list[dict[str, float]] = []
        sums = {"mean": 0.0, "best": 0.0}
        scored = undecided = unanswered = 0
        heldout = self.context.heldout_reward()
        both: list[Scored] = []
        with _SampleFile(self.context.workdir / f"samples-{_identity(options, policy)}.jsonl") as samples:
            for first in range(0, len(prompts), options.chunk):
                chunk = prompts[first : first + options.chunk]
                self._draw(chunk, samples, first, len(prompts))
                rows = [
                    (prompt, [text for k in range(n) if (text := samples.done[_key(prompt, k)]) is not None])
                    for prompt in chunk
                ]
                rewards = _rewards(reward, rows)
                if first == 0:
                    answered = [text for _, answers in rows for text in answers]
                    if answered:
                        check_answers(answered, options.max_empty)
                    check_signal(answered, list(chain.from_iterable(rewards)))
                if heldout is not None:
                    both += zip(rewards, _rewards(heldout, rows, "heldout_reward"), strict=True)
                means, bests = [], []
                for i, ((_, answers), values) in enumerate(zip(rows, rewards, strict=True), first):
                    if not values:
                        unanswered += 1
                        continue
                    means.append(sum(values) / len(values))
                    bests.append(max(values))
                    # All the same: no sample is better than another, and the first is as good as any.
                    undecided += max(values) == min(values)
                    texts.append((i, answers[values.index(max(values))]))
                if means:
                    scored += len(means)
                    sums["mean"] += sum(means)
                    sums["best"] += sum(bests)
                    curve.append(
                        {
                            "step": float(len(curve) + 1),
                            "reward": sum(means) / len(means),
                            "reward_best": sum(bests) / len(bests),
                        }
                    )
        if not texts:
            hint = "the stage's log has the backend's failures"
            raise CAIError("the policy answered no prompt", where=str(policy), hint=hint)
        empty = sum(not text.strip() for _, text in texts) / len(texts)
        if empty >= options.max_empty:
            raise UserError(
                f"the reward likes an empty answer best for {empty:.0%} of the prompts, which would be learnt",
                where="rl.max_empty",
                hint="choose a reward that wants an answer, or a larger max_new_tokens",
            )
        metrics = {
            "n": float(n),
            "prompts": float(scored),
            "samples": float(len(prompts) * n),
            "reward_mean": sums["mean"] / scored,
            "reward_best": sums["best"] / scored,
            "kl_bound": math.log(n) - (n - 1) / n,
            "prompts_undecided": float(undecided),
            "empty": empty,
        }
        notes = list(self._notes(undecided, unanswered, len(prompts)))
        found = {"texts": texts, "metrics": metrics, "curve": curve, "notes": notes, "validation": None}
        if heldout is not None:
            found["validation"] = by_n(both, n)
            notes.insert(0, found["validation"]["why"])
        return found

    def _draw(self, chunk: Sequence[Prompt], samples: _SampleFile, before: int, total: int) -> None:
        """Every sample of ``chunk`` that is not in the file yet."""
        options = self.options
        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p)
        requests = [
            GenerateRequest(
                id=_key(prompt, k),
                input=ModelInput(messages=prompt.messages),
                sampling=sampling,
                seed=derived(self.context.seed, prompt.id, k),
            )
            for prompt in chunk
            for k in range(options.n)
            if _key(prompt, k) not in samples.done
        ]
        finished = (before + len(chunk)) * options.n - len(requests)
        if requests:
            for completion in self.context.backend("policy").generate(requests):
                samples.append(completion)
                finished += 1
                self.context.progress.update(finished, total * options.n, "samples")

    def _notes(self, undecided: int, unanswered: int, total: int) -> Iterator[str]:
        if unanswered:
            yield f"{unanswered} of {total} prompts left out: the policy failed on all their samples"
        if undecided:
            yield (
                f"for {undecided} of {total} prompts all samples had the same reward: the first was taken, "
                "which teaches nothing"
            )


class _SampleFile:
    """Finished samples, one JSON line each, on the disk before the next is asked for. ``done``: key -> text, or
    None where the backend failed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.done: dict[str, str | None] = {}

    def __enter__(self) -> _SampleFile:
        whole = 0
        if self.path.exists():
            data = self.path.read_bytes()
            whole = data.rfind(b"\n") + 1  # what follows the last line end is torn
            for line in data[:whole].splitlines():
                row = json.loads(line)
                self.done[row["id"]] = row["text"]
        self._file = self.path.open("ab")
        self._file.truncate(whole)
        return self

    def append(self, completion: Completion) -> None:
        """Record one sample."""
        text = None if completion.failure else completion.text
        self._file.write(json.dumps({"id": completion.id, "text": text}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done[completion.id] = text

    def __exit__(self, *exc: Any) -> None:
        self._file.close()


def _rewards(
    reward: RewardModel, rows: Sequence[tuple[Prompt, Sequence[str]]], where: str = "reward"
) -> list[list[float]]:
    """Finite rewards, per prompt and sample."""
    exchanges = [
        Exchange(_key(prompt, k), prompt.messages, text) for prompt, texts in rows for k, text in enumerate(texts)
    ]
    values = iter(finite_rewards(reward, exchanges, where))
    return [[next(values) for _ in texts] for _, texts in rows]


def _key(prompt: Prompt, k: int) -> str:
    return f"{prompt.id}/{k}"


def _identity(options: BestOfNOptions, policy: Path) -> str:
    """So that samples of another policy or sampling are never taken up."""
    content = repr((str(policy), options.max_new_tokens, options.temperature, options.top_p))
    return hashlib.sha256(content.encode()).hexdigest()[:12]
