"""Samples of a model under training: the decoder on its live weights, or a plain loop where it does not fit."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from cai_core.errors import CAIError
from cai_core.types.backend import GenerateRequest
from cai_plugins._torch.decoding import NAME, Decoder, Draw, Row, full_attention
from cai_plugins._torch.packed import packed_weights

log = logging.getLogger(__name__)


class Rollouts:
    """Draws answers from ``model`` as its weights are at the time. A row's random numbers come from its request's seed
    alone; the answers' logits depend on the other rows by float rounding.

    ends: tokens that end an answer. most, budget: rows and tokens in memory at a time, see ``Decoder``. takes: what the
    model's forward pass can be told. shares: whether the decoder fits the model.
    """

    def __init__(self, model: Any, ends: Sequence[int], pad: int, most: int, budget: int) -> None:
        self.model = model
        self.ends = frozenset(ends)
        self.pad = pad
        self.most = most
        self.budget = budget
        self.takes = frozenset(inspect.signature(model.forward).parameters)
        with _Blocks(model, self.takes) as blocks:
            self.shares = blocks.there and self._decoder().works()
        if not self.shares:
            log.warning("the policy samples batch by batch, which is slow: its architecture does not fit the decoder")

    def sample(self, requests: Sequence[GenerateRequest], prompts: Sequence[list[int]]) -> list[list[int]]:
        """The tokens of each request's answer, the one that ends it included. prompts: each request's tokens.

        Rows with a common beginning of some length read it once. Raises ``CAIError`` where memory does not suffice for
        one row.
        """
        rows = [Row(request, list(ids)) for request, ids in zip(requests, prompts, strict=True)]
        training = self.model.training
        self.model.eval()
        try:
            if not self.shares:
                self._plain(rows)
            else:
                waiting = iter(rows)
                with _Blocks(self.model, self.takes), packed_weights(self.model):
                    # A new decoder every time: keys and values that one keeps are those of the weights at the time.
                    for row, failure in self._decoder().run(lambda: next(waiting, None)):
                        if failure is not None:
                            raise CAIError(
                                f"sampling an answer to {row.request.id!r} failed: {failure.message}",
                                hint="lower max_new_tokens, or use a smaller policy",
                            )
        finally:
            self.model.train(training)
        return [row.tokens for row in rows]

    def _decoder(self) -> Decoder:
        return Decoder(self.model, sorted(self.ends), lambda ids: "", self.most, self.budget, keep=False)

    @torch.no_grad()
    def _plain(self, rows: Sequence[Row]) -> None:
        """Batch by batch of similar length, with padding on the left."""
        ordered = sorted(rows, key=lambda row: (-len(row.ids), row.request.id))
        # Defaults that a model ships (repetition penalty) would make samples that are not the policy's own.
        shipped, self.model.generation_config = self.model.generation_config, GenerationConfig()
        try:
            self._batches(ordered)
        finally:
            self.model.generation_config = shipped

    def _batches(self, ordered: Sequence[Row]) -> None:
        for start in range(0, len(ordered), self.most):
            batch = ordered[start : start + self.most]
            width = len(batch[0].ids)
            ids = torch.tensor([[self.pad] * (width - len(row.ids)) + row.ids for row in batch])
            mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in batch])
            output = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                generation_config=GenerationConfig(
                    do_sample=False,  # the processor leaves one token
                    max_new_tokens=max(row.request.sampling.max_new_tokens for row in batch),
                    eos_token_id=sorted(self.ends),
                    pad_token_id=self.pad,
                    use_cache=True,
                ),
                logits_processor=LogitsProcessorList([Draw([row.request for row in batch], width)]),
                synced_gpus=False,  # else processes would wait for each other at every token
            )
            for row, line in zip(batch, output[:, width:].tolist(), strict=True):
                tokens = line[: row.request.sampling.max_new_tokens]
                end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
                row.tokens = tokens[: end + 1]


class _Blocks:
    """The decoder's attention for as long as it samples; training goes on with the model's own. ``there``: whether the
    model can be told."""

    def __init__(self, model: Any, takes: frozenset[str]) -> None:
        self.model = model
        self.before = model.config._attn_implementation
        self.there = full_attention(model.config.get_text_config()) and {"position_ids", "logits_to_keep"} <= takes

    def __enter__(self) -> _Blocks:
        if self.there:
            try:
                self.model.set_attn_implementation(NAME)
            except (ValueError, AttributeError, NotImplementedError):
                self.there = False
        return self

    def __exit__(self, *exc: Any) -> None:
        if self.there:
            self.model.set_attn_implementation(self.before)
