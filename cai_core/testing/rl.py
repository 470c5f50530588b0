"""The contract of an RL algorithm as tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cai_core.errors import CAIError, UserError
from cai_core.testing.base import Conformance, local_model
from cai_core.testing.context import Interrupted
from cai_core.testing.training import check_model, check_result, same_weights
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.labeler import Comparison, Label
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message, ModelInput
from cai_core.types.reward import Exchange, NoReward, Preference
from cai_core.types.rl import RLAlgorithm
from cai_core.types.trainer import TrainResult


class LetterE:
    """A scripted reward: the share of the letter e, which any policy can learn to write more of."""

    def fit(self, model: Path, preferences: Sequence[Preference], out: Path) -> TrainResult:
        """Nothing to learn."""
        return TrainResult()

    def load(self, path: Path) -> None:
        """Nothing to load."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """See the class."""
        return [exchange.response.count("e") / max(1, len(exchange.response)) for exchange in exchanges]


class Broken(LetterE):
    """A reward that is not a number."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """NaN for every answer."""
        return [math.nan] * len(exchanges)


class Letters:
    """A labeler that prefers the answer with more of the letter e."""

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        """See the class."""
        for c in comparisons:
            a, b = LetterE().score([Exchange("", (), text) for text in (c.response_a, c.response_b)])
            yield Label(c.id, 1 / (1 + math.exp(40 * (b - a))))


class Unsure(Letters):
    """A labeler whose probabilities are not numbers."""

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        """NaN for every comparison."""
        yield from (Label(c.id, math.nan) for c in comparisons)


class RLAlgorithmConformance(Conformance):
    """See ``Conformance``. ``options`` must be enough to raise the share of one letter in a tiny model's answers. Where
    ``needs`` names a labeler, one that counts that letter takes its place. short: options for a run of a few steps.
    frozen: those that make the learning rate zero, and ``frozen_needs`` of components that it needs. learns_from: as
    the component declares it. checkpointed: options with a checkpoint at every step or two. stop_at: number of the
    progress report at which the crash comes, after the first checkpoint and before the end of a short run."""

    kind = "rl_algorithm"
    learns_from: ClassVar[tuple[str, ...]] = ("prompts", "reward")
    short: ClassVar[Mapping[str, Any]] = {"steps": 4}
    frozen: ClassVar[Mapping[str, Any]] = {"learning_rate": 0}
    frozen_needs: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    checkpointed: ClassVar[Mapping[str, Any]] = {"save_steps": 1}
    stop_at: ClassVar[int] = 2

    def prompts(self) -> list[Prompt]:
        """Eight questions."""
        return [Prompt(f"p{n}", (Message("user", f"How do I bake {n} breads?"),)) for n in range(8)]

    def labels(self, policy: Path) -> list[Preference]:
        """Pairs of the policy's own answers, preferred by how many more of the letter the one has: four per prompt."""
        pairs = []
        for n, prompt in enumerate(self.prompts()):
            texts, shares = self.sampled(policy, [prompt], 8, seed=5000 + n)
            for k in range(0, 8, 2):
                p_a = 1 / (1 + math.exp(40 * (shares[k + 1] - shares[k])))
                pairs.append(Preference(f"{prompt.id}/{k}", prompt.messages, texts[k], texts[k + 1], p_a))
        return pairs

    def train(
        self,
        folder: Path,
        policy: Path,
        out: Path,
        *,
        reward: Any = None,
        stop_at: int | None = None,
        needs: Mapping[str, Mapping[str, Any]] | None = None,
        prompts: Sequence[Prompt] | None = None,
        labels: Sequence[Preference] | None = None,
        labeler: Any = None,
        **changed: Any,
    ) -> TrainResult:
        """One training by a new object, which is given what it declares to learn from."""
        if "label" not in self.learns_from:
            labels = None
        elif labels is None:
            labels = self.labels(policy)
        if "prompts" not in self.learns_from:
            prompts = ()
        elif prompts is None:
            prompts = self.prompts()
        reward = (reward or LetterE()) if "reward" in self.learns_from else NoReward()
        context = self.context(folder, stop_at=stop_at, backend=local_model(policy), changed=needs, labels=labels)
        if "labeler" in self.needs:
            context.components["labeler"] = labeler or Letters()
        algorithm: RLAlgorithm = self.make(context, **changed)
        return algorithm.train(policy, prompts, reward, out)

    def sampled(
        self, policy: Path, prompts: Sequence[Prompt], count: int, seed: int = 0
    ) -> tuple[list[str], list[float]]:
        """``count`` answers to each prompt with their rewards, the same seeds for every policy."""
        requests = [
            GenerateRequest(f"{p.id}/{k}", ModelInput(messages=p.messages), Sampling(12), seed + 1000 * k + n)
            for n, p in enumerate(prompts)
            for k in range(count)
        ]
        backend = local_model(policy)
        done = {item.id: item.text for item in backend.generate(requests)}
        backend.close()
        texts = [done[request.id] for request in requests]
        return texts, LetterE().score([Exchange("", (), text) for text in texts])

    def rewards(self, policy: Path) -> list[float]:
        """The reward of 128 samples."""
        return self.sampled(policy, self.prompts(), 16)[1]

    def test_declares_what_it_learns_from(self) -> None:
        """``learns_from`` of the registered component and of this test are the same."""
        assert sorted(self.offer().component.learns_from) == sorted(self.learns_from)

    def test_it_raises_a_scripted_reward(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Samples of the new policy earn more than those of the old one, by two standard errors at least; the curve
        has the reward of each step; what comes out is a whole model; the policy as given is left alone."""
        before = {path.name: path.read_bytes() for path in cai_tiny_model.iterdir() if path.is_file()}
        result = self.train(tmp_path / "w", cai_tiny_model, tmp_path / "out")
        check_result(result)
        assert result.curve
        assert "reward" not in self.learns_from or all("reward" in row for row in result.curve)
        check_model(tmp_path / "out")
        assert before == {path.name: path.read_bytes() for path in cai_tiny_model.iterdir() if path.is_file()}
        old, new = self.rewards(cai_tiny_model), self.rewards(tmp_path / "out")
        gain, error = mean(new) - mean(old), math.sqrt((variance(old) + variance(new)) / len(old))
        assert gain > 2 * error, f"from {mean(old):.3f} to {mean(new):.3f}, standard error {error:.3f}"

    def test_learning_rate_zero_changes_nothing(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """The weights that come out are those that went in, bit for bit."""
        changed = {**self.short, **self.frozen}
        self.train(tmp_path / "w", cai_tiny_model, tmp_path / "out", needs=self.frozen_needs, **changed)
        assert same_weights(cai_tiny_model, tmp_path / "out")

    def test_a_restart_ends_where_an_unbroken_run_ends(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Stopped by a crash and started again: the same weights, bit for bit, and the curve of all steps."""
        changed = {**self.short, **self.checkpointed}
        whole = self.train(tmp_path / "whole", cai_tiny_model, tmp_path / "a", **changed)
        assert not same_weights(cai_tiny_model, tmp_path / "a"), "a short run that learns nothing would prove nothing"
        with pytest.raises(Interrupted):
            self.train(tmp_path / "cut", cai_tiny_model, tmp_path / "b", stop_at=self.stop_at, **changed)
        assert any((tmp_path / "cut").rglob("*")), "checkpoints go to context.workdir"
        again = self.train(tmp_path / "cut", cai_tiny_model, tmp_path / "b", **changed)
        assert same_weights(tmp_path / "a", tmp_path / "b")
        assert [dict(row) for row in again.curve] == [dict(row) for row in whole.curve]

    def test_a_reward_that_is_no_number_stops_it(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Nothing is learnt from NaN, be it a reward, a label or a labeler's: ``CAIError``."""
        labels = [replace(pair, p_a=math.nan) for pair in self.labels(cai_tiny_model)]
        broken: dict[str, Any] = {"reward": Broken(), "labels": labels, "labeler": Unsure()}
        with pytest.raises(CAIError):
            self.train(tmp_path / "w", cai_tiny_model, tmp_path / "out", **broken, **self.short)
        assert not (tmp_path / "out").exists()

    def test_no_prompt_is_the_users_error(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Nor no label: ``UserError``, and nothing is written."""
        with pytest.raises(UserError):
            self.train(tmp_path / "w", cai_tiny_model, tmp_path / "out", prompts=[], labels=[], **self.short)
        assert not (tmp_path / "out").exists()


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """Unbiased."""
    return math.fsum((value - mean(values)) ** 2 for value in values) / (len(values) - 1)
