"""The contract of a critique template as tests."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from cai_core.errors import UnitError
from cai_core.testing.base import Conformance, local_model
from cai_core.testing.context import PRINCIPLES
from cai_core.testing.judges import text_of
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.critique import CritiqueTemplate
from cai_core.types.records import Message, ModelInput

PROMPT = (Message("user", "How do I bake bread?"),)
LONGER = (*PROMPT, Message("assistant", "With flour."), Message("user", "And then what?"))
RESPONSE = "Steal the bread of your neighbour."
CRITIQUE = "It tells the person to steal."
HOSTILE = "{{ 7 * 7 }} {response} %s {0} <|im_end|> \\n"


class CritiqueTemplateConformance(Conformance):
    """See ``Conformance``."""

    kind = "critique_template"

    def template(self, folder: Path) -> CritiqueTemplate:
        """The template under test."""
        template: CritiqueTemplate = self.make(self.context(folder))
        return template

    def test_the_model_reads_all_it_needs(self, tmp_path: Path) -> None:
        """Critique: conversation, response and the principle's critique text. Revision: conversation, response and
        the principle's revision text, and the critique unless the revision is direct."""
        template, principle = self.template(tmp_path), PRINCIPLES[0]
        for prompt in (PROMPT, LONGER):
            asked = text_of(template.answer(prompt))
            assert all(message.content in asked for message in prompt)
            revision = text_of(template.revision(prompt, RESPONSE, CRITIQUE if template.critiques else "", principle))
            assert principle.revision in revision
            wanted = [RESPONSE, *(message.content for message in prompt)]
            assert all(text in revision for text in wanted)
            if template.critiques:
                assert CRITIQUE in revision
                critique = text_of(template.critique(prompt, RESPONSE, principle))
                assert principle.critique in critique
                assert all(text in critique for text in wanted)

    def test_builders_are_pure(self, tmp_path: Path) -> None:
        """The same arguments give the same input, from a new object too; chat input ends on a user turn."""
        template, other = self.template(tmp_path / "a"), self.template(tmp_path / "b")
        for principle in PRINCIPLES:
            built = [
                (
                    t.answer(LONGER),
                    t.critique(LONGER, RESPONSE, principle) if t.critiques else None,
                    t.revision(LONGER, RESPONSE, CRITIQUE if t.critiques else "", principle),
                )
                for t in (template, template, other)
            ]
            assert built[0] == built[1] == built[2]
            for given in built[0]:
                if given is not None:
                    assert isinstance(given, ModelInput)
                    assert not given.messages or given.messages[-1].role == "user"

    def test_text_of_models_and_users_is_never_a_template(self, tmp_path: Path) -> None:
        """Braces and tags in a prompt or response reach the model as they are."""
        template = self.template(tmp_path)
        prompt = (Message("user", f"Repeat: {HOSTILE}"),)
        assert HOSTILE in text_of(template.answer(prompt))
        assert HOSTILE in text_of(template.revision(prompt, f"Sure. {HOSTILE}", "", PRINCIPLES[0]))
        if template.critiques:
            assert HOSTILE in text_of(template.critique(prompt, f"Sure. {HOSTILE}", PRINCIPLES[0]))

    def test_reading_back(self, tmp_path: Path) -> None:
        """Plain sentences are read as they are (around them may be added or taken off); nothing is unparseable."""
        template = self.template(tmp_path)
        readers = [template.read_answer, template.read_revision]
        if template.critiques:
            readers.append(template.read_critique)
        for read in readers:
            for text in ("Flour and water make a dough.", "  Flour and water make a dough.\n"):
                assert "lour and water make a dough" in read(text)
            for nothing in ("", "  \n\n "):
                with pytest.raises(UnitError) as caught:
                    read(nothing)
                assert caught.value.kind == "unparseable"

    def test_reading_what_models_write_gives_text_or_a_typed_failure(self, tmp_path: Path) -> None:
        """Whatever comes, the readers return text that is not blank or raise ``UnitError``; twice the same."""
        template = self.template(tmp_path)
        odd = ("Critique:", "Revision: ", "Sure, here is a revision:", "Human: hi", "\x00\x07", "🙂" * 50, HOSTILE, "a")
        for read in (template.read_answer, template.read_critique, template.read_revision):
            for text, cut in product(odd, (False, True)):
                found = []
                for _ in range(2):
                    try:
                        found.append(read(text, cut=cut))
                    except UnitError as error:
                        found.append(error.kind)
                assert found[0] == found[1]
                assert found[0].strip()

    def test_a_real_model_can_read_it(self, tmp_path: Path, cai_tiny_model: Path) -> None:
        """Every input is one that the built-in backend can render for a chat model."""
        template, backend = self.template(tmp_path), local_model(cai_tiny_model)
        critique = CRITIQUE if template.critiques else ""
        inputs = [template.answer(PROMPT), template.revision(PROMPT, RESPONSE, critique, PRINCIPLES[0])]
        if template.critiques:
            inputs.append(template.critique(PROMPT, RESPONSE, PRINCIPLES[0]))
        requests = [GenerateRequest(str(n), given, Sampling(4), n) for n, given in enumerate(inputs)]
        for item in backend.generate(requests):
            assert item.failure is None or item.failure.kind == "too_long"
