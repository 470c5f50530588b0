"""Backends: ``transformers`` (in this process), ``openai`` (any compatible server), ``echo`` (scripted, for tests)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cai_core.hookspecs import hookimpl
from cai_core.types.backend import Backend
from cai_core.types.component import EXECUTION, Component
from cai_core.types.context import StageContext


class TransformersOptions(BaseModel):
    """A Hugging Face causal language model, run in this process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("", description="model folder or hub id; the pipeline fills it in")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="number format of the weights; auto is float32 on CPU and bfloat16 on a GPU"
    )
    token_budget: int | None = Field(
        None,
        ge=1,
        description="tokens in memory per batch, padding and those to be generated included; unset, as many as "
        "an eighth of the memory holds keys and values of, from 4,096 to 65,536 (on a GPU 1,048,576)",
        json_schema_extra=EXECUTION,
    )
    # Our choices: see ``_torch/memory.py``.
    max_batch: int | None = Field(
        None,
        ge=1,
        description="rows per batch at most; unset, 64 on a CPU and 512 on a GPU",
        json_schema_extra=EXECUTION,
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model; only for a model you have read"
    )


class OpenAIOptions(BaseModel):
    """A server that speaks the OpenAI protocol. Name its model as ``server:NAME`` under ``models:``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("", description="name of the model at the server; the pipeline fills it in")
    base_url: str = Field(
        "http://127.0.0.1:8000/v1",
        pattern=r"^https?://[^\s@?#]+$",
        description="where the server is, up to and with /v1; no user name or key in it",
        json_schema_extra=EXECUTION,
    )
    revision: str = Field("", description="raise it when the server's model changes: its name is all that is known")
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$|^$",
        description="environment variable with the key; it is sent when it is set, and written nowhere",
        json_schema_extra=EXECUTION,
    )
    tokenizer: str = Field(
        "",
        description="folder or hub id of the model's tokenizer: inputs are then rendered here and sent as tokens, "
        "which scoring conversations needs",
    )
    prefill: Literal["continue", "ask"] = Field(
        "continue",
        description="how an answer is begun for the model: continue_final_message (vLLM, SGLang), or by asking for it",
    )
    # Our choices: a local vLLM is busy from some tens of calls; hosted servers answer 429, and then fewer are made.
    concurrency: int = Field(64, ge=1, le=4096, description="calls at a time at most", json_schema_extra=EXECUTION)
    timeout_s: float = Field(120.0, gt=0, description="seconds for one call", json_schema_extra=EXECUTION)
    deadline_s: float = Field(
        600.0, gt=0, description="seconds for one unit with all its tries", json_schema_extra=EXECUTION
    )
    retries: int = Field(
        6,
        ge=0,
        le=100,
        description="tries after the first, per unit; what a busy server (429, 503) puts off is not counted",
        json_schema_extra=EXECUTION,
    )
    patience_s: float = Field(
        120.0,
        gt=0,
        description="the stage stops when the server has answered nobody for so long",
        json_schema_extra=EXECUTION,
    )


class EchoOptions(BaseModel):
    """A scripted backend: no model, the same text for the same request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("", description="ignored; the pipeline fills it in")
    reply: str | None = Field(
        None, description="what it always answers ({seed} and {text} are filled in); null repeats the last turn"
    )
    delay_s: float = Field(0.0, ge=0, description="seconds to wait before each result", json_schema_extra=EXECUTION)
    fail_every: int = Field(
        0, ge=0, description="about one request in so many fails, chosen by its id; 0 is none, 1 is all"
    )
    bias: Literal["first", "longer", "none"] = Field(
        "none",
        description="scores favour the first continuation, the option shown with the longer answer, or neither "
        "(a fixed function of the text)",
    )


def make_transformers(options: TransformersOptions, context: StageContext) -> Backend:
    """A local model, opened on first use."""
    from cai_plugins.backends.transformers import TransformersBackend

    return TransformersBackend(options, context.device)


def make_openai(options: OpenAIOptions, context: StageContext) -> Backend:
    """A server."""
    from cai_plugins.backends.openai import OpenAIBackend

    return OpenAIBackend(options)


def make_echo(options: EchoOptions, context: StageContext) -> Backend:
    """A scripted backend."""
    from cai_plugins.backends.echo import EchoBackend

    return EchoBackend(options)


@hookimpl
def cai_register_backends() -> Iterable[Component[Backend]]:
    """The built-in backends."""
    yield Component(
        "transformers",
        TransformersOptions,
        make_transformers,
        "a Hugging Face model in this process, CPU or GPU",
        revision=4,
    )
    yield Component(
        "openai",
        OpenAIOptions,
        make_openai,
        "any server that speaks the OpenAI protocol, such as vLLM",
        revision=2,
    )
    yield Component("echo", EchoOptions, make_echo, "scripted answers without a model, for tests and dry runs")
