"""What the stages that generate text share: a completion as a unit of work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any, TypeVar

from cai_core.errors import UserError
from cai_core.pipeline.executor import Outcome, Unit
from cai_core.pipeline.job import Job
from cai_core.store.ledger import Row
from cai_core.types.backend import Completion, GenerateRequest, Sampling
from cai_core.types.prompts import Prompt
from cai_core.types.records import Conversation, ModelInput, UnitFailure

T = TypeVar("T")

CHUNK = 256
"""Units that a component which takes a list is given at a time: what a crash inside it may cost."""
WINDOW = 2048
"""Prompts whose texts are in memory at a time. At the end of a window the last chains run alone: with 2048 of them and
64 at a time that costs some 3 % (our choice)."""


def windows(items: Iterable[T]) -> Iterator[list[T]]:
    """Lists of ``WINDOW`` items."""
    source = iter(items)
    while window := list(islice(source, WINDOW)):
        yield window


def sampling_from(settings: Mapping[str, Any]) -> Sampling:
    """The ``sampling`` section of a recipe."""
    return Sampling(**settings)


def input_record(model_input: ModelInput) -> dict[str, Any]:
    """A model input as JSON, for identities."""
    return {
        "messages": [message.as_dict() for message in model_input.messages],
        "text": model_input.text,
        "prefill": model_input.prefill,
        "stop": list(model_input.stop),
    }


def generation_identity(
    job: Job, role: str, name: str, model_input: ModelInput, sampling: Sampling, reader: Mapping[str, Any]
) -> dict[str, Any]:
    """Identity of one completion. It holds what the text depends on and no more, so that other recipes and longer
    prompt lists find it again. ``reader``: identity of the component that reads the text back, if any."""
    return {
        "unit": name,
        "input": input_record(model_input),
        "sampling": asdict(sampling),
        "model": job.model_digest(role),
        "backend": job.component_identity("backend"),
        "reader": dict(reader),
        "seed": job.spec.seed,
    }


def generation_unit(
    job: Job,
    role: str,
    name: str,
    model_input: ModelInput,
    sampling: Sampling,
    *,
    reader: Mapping[str, Any] | None = None,
    parent: str = "",
) -> Unit[GenerateRequest]:
    """A unit that generates. Its seed follows from the run's seed and its name."""
    identity = generation_identity(job, role, name, model_input, sampling, reader or {})
    request = GenerateRequest(name, model_input, sampling, job.unit_seed(name), parent=parent)
    return Unit(name, identity, request)


def run_generation(
    job: Job, role: str, requests: Iterator[GenerateRequest]
) -> Iterator[tuple[str, Completion, dict[str, Any]]]:
    """Ask the backend, which takes a request when it has room; yields (name, completion, payload with text and token
    counts)."""
    for completion in job.backend(role).generate(requests):
        payload = {
            "text": completion.text,
            "finish": completion.finish,
            "tokens_in": completion.tokens_in,
            "tokens_out": completion.tokens_out,
        }
        yield completion.id, completion, payload


def plain_outcome(completion: Completion, payload: Mapping[str, Any]) -> Outcome:
    """An answer as it is; an empty one is a failure, since nothing can be learnt or judged from it."""
    if completion.failure:
        return Outcome(payload, completion.failure)
    text = completion.text.strip()
    if not text:
        return Outcome(payload, UnitFailure("unparseable", "the model answered nothing"))
    return Outcome({**payload, "text": text})


def cut_at(job: Job, row: Row) -> int | None:
    """After how many tokens a limit ended the text of a row, 0 where the model ended it; None where nobody knows, or
    there is no text. What is read back of such a text may end before that."""
    finish = None if row.failure else row.payload.get("finish")
    if finish == "length":
        # Not every server counts tokens.
        return int(row.payload.get("tokens_out") or job.spec.settings["sampling"]["max_new_tokens"])
    return 0 if finish == "stop" else None


def shortened(messages: Conversation) -> Conversation | None:
    """The conversation without its oldest exchange; a system turn and the last user turn always stay. None when
    there is nothing to cut."""
    head = 1 if messages[0].role == "system" else 0
    later = next((i for i in range(head + 1, len(messages)) if messages[i].role == "user"), None)
    return None if later is None else (*messages[:head], *messages[later:])


def cut_notes(count: int) -> list[str]:
    """For the report, where conversations were cut."""
    return [f"{count} conversations were longer than the model's context and lost their oldest turns"] if count else []


def refuse_too_long(job: Job, prompt: Prompt, failure: UnitFailure | None) -> None:
    """Raises ``UserError`` for a prompt that does not fit the model's context, where the recipe wants that."""
    if failure and failure.kind == "too_long" and job.spec.settings["long_prompts"] == "refuse":
        raise UserError(
            f"the prompt {prompt.id!r} is longer than the model's context: {failure.message}",
            where=prompt.source,
            hint="shorten it, take it out, lower `max_new_tokens`, or set `long_prompts: cut`; what is done is kept",
        )


def failure_record(failure: UnitFailure | None) -> dict[str, str] | None:
    """A failure as JSON."""
    return {"kind": failure.kind, "message": failure.message} if failure else None
