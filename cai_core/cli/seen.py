"""What a model will read of a constitution: the prompts that the chosen component itself builds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cai_core.errors import UserError
from cai_core.types.backend import Capabilities, Completion, GenerateRequest, ScoreRequest, Scores
from cai_core.types.labeler import Comparison
from cai_core.types.principles import Constitution
from cai_core.types.records import Message, ModelInput, UnitFailure
from cai_core.yamlio import near_name

PROMPT = (Message("user", "<what the user asks>"),)


def seen(constitution: Constitution, template: str) -> list[tuple[str, str]]:
    """(step, text) of every prompt that the critique template or labeler of this name builds for one principle."""
    from cai_core.plugins import load_plugins
    from cai_core.registry import Registry

    registry = Registry(load_plugins())
    names = {kind: [o.component.name for o in registry.offers(kind)] for kind in ("critique_template", "labeler")}
    for kind, known in names.items():
        if template in known or "/" in template:
            offer = registry.find(kind, template)
            context = _Context(constitution)
            options = registry.options(offer, {}, where=f"{kind} {template}")
            component = offer.component.factory(options, context)
            return _critique(component, constitution) if kind == "critique_template" else _labels(component, context)
    every = [name for known in names.values() for name in known]
    raise UserError(
        f"no critique template or labeler {template!r}",
        hint=near_name(template, every) or f"There are {', '.join(every)}.",
    )


def _critique(template: Any, constitution: Constitution) -> list[tuple[str, str]]:
    principle = next((p for p in constitution.principles if p.revision), None)
    if principle is None:
        raise UserError("no principle has a revision text, so a critique template shows none of them")
    steps = [("answer", template.answer(PROMPT))]
    critique = ""
    if template.critiques:
        critique = "<the critique>"
        steps.append((f"critique, {principle.id}", template.critique(PROMPT, "<the response>", principle)))
    steps.append((f"revision, {principle.id}", template.revision(PROMPT, "<the response>", critique, principle)))
    return [(step, _text(asked)) for step, asked in steps]


def _labels(labeler: Any, context: _Context) -> list[tuple[str, str]]:
    principle = next((p for p in context.constitution.principles if p.comparison), None)
    if principle is None:
        raise UserError("no principle has a comparison text, so a labeler shows none of them")
    comparison = Comparison("shown", PROMPT, "<response A>", "<response B>", (principle,), 0)
    list(labeler.label([comparison]))
    return [(f"comparison, {principle.id}", _text(asked)) for asked in context.asked]


def _text(asked: ModelInput) -> str:
    if asked.text:
        return asked.text + asked.prefill
    turns = [*asked.messages, *([Message("assistant", asked.prefill)] if asked.prefill else [])]
    return "\n".join(json.dumps(turn.as_dict(), ensure_ascii=False) for turn in turns)


class _Context:
    """A context with a model that writes down what it is asked and answers nothing."""

    def __init__(self, constitution: Constitution) -> None:
        self.constitution = constitution
        self.seed = 0
        self.workdir = Path()
        self.device = "cpu"
        self.progress = self
        self.capabilities = Capabilities(generate=True, score=True)
        self.context_length = 1 << 30
        self.asked: list[ModelInput] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        """Nothing is shown."""

    def backend(self, role: str) -> Any:
        """Itself."""
        return self

    def component(self, kind: str) -> Any:
        """None is there."""
        raise UserError(f"the component needs a {kind}; its prompts can only be seen in a run")

    def preferences(self) -> Any:
        """None are there."""
        raise UserError("the component needs labels; its prompts can only be seen in a run")

    def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[Completion]:
        """Write down."""
        for request in requests:
            self.asked.append(request.input)
            yield Completion(request.id, "", "error", failure=UnitFailure("infra", "nothing is asked here"))

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Scores]:
        """Write down."""
        for request in requests:
            self.asked.append(request.input)
            yield Scores(request.id, (), (), failure=UnitFailure("infra", "nothing is asked here"))

    def close(self) -> None:
        """Nothing is open."""
