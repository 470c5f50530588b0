"""Prompts with answers of a policy, as batches for its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Tokens = tuple[list[int], list[int]]
"""A prompt and an answer to it."""


def by_length(
    chosen: Iterable[int], length: Callable[[int], int], size: int, part: int = 0, parts: int = 1
) -> Iterator[list[int]]:
    """``chosen`` in lists of ``size``, those of like length together; of ``parts`` of like length one ``part``."""
    ordered = sorted(chosen, key=lambda i: (length(i), i))[part::parts]
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def tokens_of(samples: Sequence[Tokens]) -> Callable[[int], int]:
    """The length of prompt and answer at a place, for ``by_length``."""
    return lambda i: len(samples[i][0]) + len(samples[i][1])


def forward_inputs(
    samples: Sequence[Tokens], pad: int, takes: frozenset[str], device: Any
) -> tuple[dict[str, Any], int]:
    """What the model's forward pass is given, as far as it ``takes`` it, and the width of the longest answer. Padding
    is on the left, so that answers end together."""
    width = max(len(answer) for _, answer in samples)
    whole = max(len(prompt) + len(answer) for prompt, answer in samples)
    ids = torch.tensor([[pad] * (whole - len(p) - len(a)) + p + a for p, a in samples], device=device)
    mask = torch.tensor([[0] * (whole - len(p) - len(a)) + [1] * (len(p) + len(a)) for p, a in samples], device=device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if "position_ids" in takes:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    return inputs, width


def only_answers(width: int, takes: frozenset[str]) -> dict[str, int]:
    """What asks a model that ``takes`` it for the logits of ``answer_logits`` alone."""
    return {"logits_to_keep": width + 1} if "logits_to_keep" in takes else {}


def answer_logits(logits: Tensor, width: int, temperature: float) -> Tensor:
    """Before each token of the answers [rows, width, vocabulary]: the state that it is drawn from, in float32."""
    return logits[:, -width - 1 : -1].float() / temperature
