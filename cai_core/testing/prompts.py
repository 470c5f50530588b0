"""The contract of a source of prompts as tests."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from cai_core.testing.base import Conformance
from cai_core.types.prompts import Prompt, PromptKind, PromptSource, Split


class PromptSourceConformance(Conformance):
    """See ``Conformance``. A source that reads a file: write the file in ``make`` and pass its path on."""

    kind = "prompts"

    def source(self, folder: Path) -> PromptSource:
        """The source under test."""
        source: PromptSource = self.make(self.context(folder))
        return source

    def test_prompts_are_conversations_that_end_on_a_user_turn(self, tmp_path: Path) -> None:
        """At least one; ids are unique; kinds and splits are known; no empty turn at the end."""
        prompts = list(self.source(tmp_path).load())
        assert prompts, "a source without prompts is a UserError"
        assert len({prompt.id for prompt in prompts}) == len(prompts)
        for prompt in prompts:
            assert isinstance(prompt, Prompt)
            assert prompt.messages[-1].role == "user"
            assert prompt.messages[-1].content.strip()
            assert prompt.kind in get_args(PromptKind)
            assert prompt.split in get_args(Split)
            assert prompt.kind != "borderline" or prompt.split == "heldout"

    def test_loading_again_gives_the_same(self, tmp_path: Path) -> None:
        """The same options and files: the same prompts in the same order, from a new object too."""
        first, again = self.source(tmp_path / "a"), self.source(tmp_path / "b")
        assert list(first.load()) == list(first.load()) == list(again.load())

    def test_no_prompt_is_in_both_splits(self, tmp_path: Path) -> None:
        """What is held out is not trained on."""
        texts: dict[str, set[tuple[str, ...]]] = {"train": set(), "heldout": set()}
        for prompt in self.source(tmp_path).load():
            texts[prompt.split].add(tuple(message.content.strip() for message in prompt.messages))
        assert not texts["train"] & texts["heldout"]
