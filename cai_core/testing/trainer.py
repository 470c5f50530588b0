"""The contract of a trainer as tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cai_core.errors import UserError
from cai_core.testing.base import Conformance
from cai_core.testing.context import Interrupted
from cai_core.testing.training import check_model, check_result, same_weights
from cai_core.types.records import Message
from cai_core.types.trainer import Example, Trainer, TrainResult


class TrainerConformance(Conformance):
    """See ``Conformance``. ``options`` must make the loss of 24 equal examples fall. frozen: options that make the
    learning rate zero. checkpointed: options with a checkpoint at every step or two. stop_at: number of the
    progress report at which the crash comes, after the first checkpoint and before the end."""

    kind = "trainer"
    frozen: ClassVar[Mapping[str, Any]] = {"learning_rate": 0}
    checkpointed: ClassVar[Mapping[str, Any]] = {"save_steps": 1}
    stop_at: ClassVar[int] = 2

    def examples(self) -> list[Example]:
        """Equal questions and answers, so that any training lowers the loss."""
        turns = (Message("user", "How do I bake bread?"), Message("assistant", "Mix flour, water, salt and yeast."))
        return [Example(f"e{number}", turns, "kit") for number in range(24)]

    def train(
        self, folder: Path, model: Path, out: Path, stop_at: int | None = None, **changed: Any
    ) -> TrainResult:
        """One training by a new object."""
        trainer: Trainer = self.make(self.context(folder, stop_at=stop_at), **changed)
        return trainer.train(model, self.examples(), out)

    def test_it_learns_and_writes_a_whole_model(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """The loss falls; what comes out is a model folder that the built-in backend opens; the input is as before."""
        before = {path.name: path.read_bytes() for path in cai_tiny_model.iterdir() if path.is_file()}
        result = self.train(tmp_path / "w", cai_tiny_model, tmp_path / "out")
        check_result(result)
        losses = [row["loss"] for row in result.curve if "loss" in row]
        assert len(losses) >= 2, "the curve has the loss of each logged step"
        assert losses[-1] < losses[0]
        check_model(tmp_path / "out")
        assert not same_weights(cai_tiny_model, tmp_path / "out")
        after = {path.name: path.read_bytes() for path in cai_tiny_model.iterdir() if path.is_file()}
        assert after == before, "the model that it starts from is not its own"

    def test_learning_rate_zero_changes_nothing(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """The weights that come out are those that went in, bit for bit."""
        self.train(tmp_path / "w", cai_tiny_model, tmp_path / "out", **self.frozen)
        assert same_weights(cai_tiny_model, tmp_path / "out")

    def test_a_restart_ends_where_an_unbroken_training_ends(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Stopped by a crash and started again: the same weights, bit for bit, and the curve of all steps."""
        whole = self.train(tmp_path / "whole", cai_tiny_model, tmp_path / "a", **self.checkpointed)
        with pytest.raises(Interrupted):
            self.train(tmp_path / "cut", cai_tiny_model, tmp_path / "b", stop_at=self.stop_at, **self.checkpointed)
        assert any((tmp_path / "cut").rglob("*")), "checkpoints go to context.workdir"
        again = self.train(tmp_path / "cut", cai_tiny_model, tmp_path / "b", **self.checkpointed)
        assert same_weights(tmp_path / "a", tmp_path / "b")
        assert [row["step"] for row in again.curve] == [row["step"] for row in whole.curve]

    def test_bad_examples_are_named(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """No example, or one that does not end on an answer, is a ``UserError``."""
        unanswered = Example("odd", (Message("user", "Hello?"),))
        for examples in ([], [unanswered]):
            trainer: Trainer = self.make(self.context(tmp_path / "w"))
            with pytest.raises(UserError):
                trainer.train(cai_tiny_model, examples, tmp_path / "out")
