"""What the stages that generate text share: a completion as a unit of work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cai_core.errors import UserError
from cai_core.pipeline.executor import Outcome, Unit
from cai_core.pipeline.job import Job
from cai_core.types.backend import Completion, GenerateRequest, Sampling
from cai_core.types.prompts import Prompt
from cai_core.types.records import ModelInput, UnitFailure


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
    job: Job, role: str, units: Sequence[Unit[GenerateRequest]]
) -> Iterator[tuple[str, Completion, dict[str, Any]]]:
    """Ask the backend; yields (name, completion, payload with text and token counts)."""
    for completion in job.backend(role).generate([unit.work for unit in units]):
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


def refuse_too_long(prompt: Prompt, failure: UnitFailure | None) -> None:
    """Raises ``UserError`` for a prompt that does not fit the model's context: bad input, which no rerun can mend."""
    if failure and failure.kind == "too_long":
        raise UserError(
            f"the prompt {prompt.id!r} is longer than the model's context: {failure.message}",
            where=prompt.source,
            hint="shorten it, take it out, or lower `max_new_tokens`; everything finished so far is kept",
        )


def failure_record(failure: UnitFailure | None) -> dict[str, str] | None:
    """A failure as JSON."""
    return {"kind": failure.kind, "message": failure.message} if failure else None
