"""Generation with one batch that never drains: rows that finish make room for others at once.

What is computed once: the tokens that many rows begin with (few-shot examples) are kept apart as *blocks* and attended
to together by all rows, as in Hydragen (Juravsky et al. 2024); a row that goes on where another one ended (the critique
after the answer, the revision after the critique) takes over its keys and values.

Rows lie in a buffer of keys and values, [row, head, column, dimension], all ending at the same column: a new token of
every row goes into the next column. Positions are given to the model, so columns mean nothing to it.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any
from weakref import proxy

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, LogitsProcessor
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cai_core.errors import CAIError
from cai_core.types.backend import GenerateRequest, Sampling
from cai_core.types.records import UnitFailure

log = logging.getLogger(__name__)

NAME = "cai_blocks"
# Our choices. Under 64 tokens in common, computing them again costs less than keeping them apart; fewer than 4 rows
# that begin alike make no block; 8192 tokens of blocks are 0.4 GB for a 135M model.
MIN_SHARED = 64
MIN_FAMILY = 4
MAX_BLOCK_TOKENS = 8192
# Our choices: prompts are read this many tokens at a time, which bounds the attention scores in memory (a GPU's kernels
# keep none).
PREFILL_TOKENS, PREFILL_ELSEWHERE = {"cpu": 1024}, 16384
# Our choice: about the square root of a vocabulary.
BLOCK = 128
# Our choice: rows differ in length, and attention over a part of the batch is as wide as the longest row of that part.
# On a GPU that is cheaper than more calls.
PARTS = {"cpu": 4}
# Our choices: how far the next token's distribution may be off, in nats, for the decoder to fit a model. Rounding makes
# less of it in the catalog models, on a CPU as on a GPU. In bfloat16 a small misfit hides in it, so architectures are
# tested in float32.
ROUNDING = {torch.float16: 1e-3, torch.bfloat16: 2e-2}
# Columns to spare when the buffer is made, so that it is moved once in so many steps.
SLACK = 128


@dataclass(slots=True)
class Row:
    """A request under way. ``block``: how many of its first tokens are read from a block, which begins at ``offset``
    of the blocks; its own tokens come after."""

    request: GenerateRequest
    ids: list[int]
    tokens: list[int] = field(default_factory=list)
    block: int = 0
    offset: int = 0
    width: int = 0  # columns in use: its own tokens whose keys and values are there

    @property
    def needs(self) -> int:
        """Columns that it will need."""
        return len(self.ids) - self.block + self.request.sampling.max_new_tokens


@dataclass(slots=True)
class _Kept:
    """Keys and values of a finished row: per layer [head, token, dimension] of ``ids[block:]``."""

    ids: list[int]
    block: int
    offset: int
    parent: str
    layers: list[tuple[torch.Tensor, torch.Tensor]]


class _Blocks:
    """Beginnings that rows share, one after the other: per layer [head, token, dimension]."""

    def __init__(self) -> None:
        self.ids: list[tuple[int, list[int]]] = []  # (offset, tokens)
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.length = 0

    def find(self, ids: Sequence[int]) -> tuple[int, int]:
        """(tokens in common with the best block, its offset); one token at least stays the row's own."""
        best = 0, 0
        for offset, block in self.ids:
            common = min(common_length(ids, block), len(ids) - 1)
            if common >= MIN_SHARED and common > best[0]:
                best = common, offset
        return best

    def add(self, ids: list[int], cache: Cache) -> None:
        """Append what a forward pass over ``ids`` left in ``cache``."""
        new = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
        if self.layers:
            new = [
                (torch.cat([k, nk], 1), torch.cat([v, nv], 1))
                for (k, v), (nk, nv) in zip(self.layers, new, strict=True)
            ]
        self.layers = new
        self.ids.append((self.length, ids))
        self.length += len(ids)


class _Layer(CacheLayerMixin):
    """One layer of a buffer. ``update`` writes at ``place`` and returns the columns from ``first`` on."""

    is_sliding = False
    is_croppable = False

    def __init__(self, owner: _Buffer) -> None:
        super().__init__()
        # Owner and layer in a circle would hold gigabytes until the garbage collector comes round, which counts objects
        # and not bytes.
        self.owner = proxy(owner)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Done by the owner."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """See ``CacheLayerMixin``."""
        owner = self.owner
        rows, heads, new, width = key_states.shape
        if self.keys is None:
            shape = (owner.rows, heads, owner.columns, width)
            # Every column is written before it is read: a buffer that begins with its first column.
            self.keys, self.values = key_states.new_empty(shape), value_states.new_empty(shape)
        end = owner.place + new
        self.keys[:rows, :, owner.place : end] = key_states
        self.values[:rows, :, owner.place : end] = value_states
        return self.keys[:rows, :, owner.first : end], self.values[:rows, :, owner.first : end]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.owner.place

    def get_max_length(self) -> int:
        """Columns there are."""
        return self.owner.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask is always given."""
        return self.owner.place + query_length - self.owner.first, 0


class _Buffer:
    """Keys and values of all layers, [rows, head, columns, dimension]; ``cache`` is what the model is given."""

    def __init__(self, layers: int, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns
        self.first = 0
        self.place = 0
        self.cache = Cache(layers=[_Layer(self) for _ in range(layers)])

    def tensors(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of each layer."""
        for layer in self.cache.layers:
            yield layer.keys, layer.values


class _State:
    """What attention needs to know beyond its arguments: the blocks, and which of their tokens each row sees."""

    def __init__(self) -> None:
        self.active = False
        self.blocks: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.mask: torch.Tensor | None = None  # [rows, 1, 1, block tokens]; None where no row uses a block
        self.parts: list[tuple[int, int, int]] = []  # rows from, rows to, first column that they need


_STATE = _State()


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a row's own columns and its block. query [rows, heads, new, dim]; key, value [rows, kv heads,
    columns, dim]; mask [rows, 1, new, columns], True where it may look."""
    if not _STATE.active:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("attention with a soft cap, sinks or a position bias")
    rows, heads, new, dim = query.shape
    shared = key.shape[1]
    group = heads // shared
    scaling = dim**-0.5 if scaling is None else scaling
    assert attention_mask is not None
    # The query heads that share a key head become more queries of it, so that keys and values are not repeated.
    query = query.reshape(rows, shared, group * new, dim)
    mask = attention_mask
    if group > 1 and new > 1:
        mask = mask[:, :, None].expand(rows, 1, group, new, -1).reshape(rows, 1, group * new, -1)
    mask = mask.expand(rows, 1, group * new, -1)
    if _STATE.mask is None:
        found = torch.cat(
            [
                functional.scaled_dot_product_attention(
                    query[a:b], key[a:b, :, c:], value[a:b, :, c:], attn_mask=mask[a:b, ..., c:], scale=scaling
                )
                for a, b, c in _STATE.parts
            ]
        )
    else:
        with_block = _with_block if new == 1 else _reading_with_block
        # Else autocast, in which a policy under training is sampled from, would round the scores.
        with torch.autocast(query.device.type, enabled=False):
            found = with_block(query, key, value, mask, scaling, *_STATE.blocks[module.layer_idx], _STATE.mask)  # type: ignore[index]
    return found.reshape(rows, heads, new, -1).transpose(1, 2).contiguous(), None


def _with_block(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float,
    block_key: torch.Tensor, block_value: torch.Tensor, block_mask: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    rows, shared, queries, dim = query.shape
    length = block_key.shape[1]
    # Scores in float32 also of a model in half precision: those of some models are in the hundreds, where bfloat16 is
    # whole numbers, and beyond what float16 can hold.
    precise = query.float()
    own = torch.matmul(precise, key.float().transpose(2, 3))
    # One product for all rows: they look at the same tokens.
    together = precise.transpose(0, 1).reshape(shared, rows * queries, dim)
    block = torch.bmm(together, block_key.float().transpose(1, 2))
    block = block.view(shared, rows, queries, length).transpose(0, 1)
    least = torch.finfo(torch.float32).min
    scores = torch.cat(
        [(block * scaling).masked_fill(~block_mask, least), (own * scaling).masked_fill(~mask, least)], -1
    )
    weights = scores.softmax(-1).to(value.dtype)
    on_block = weights[..., :length].transpose(0, 1).reshape(shared, rows * queries, length)
    from_block = torch.bmm(on_block, block_value).view(shared, rows, queries, -1).transpose(0, 1)
    return torch.matmul(weights[..., length:], value) + from_block


def _reading_with_block(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float,
    block_key: torch.Tensor, block_value: torch.Tensor, block_mask: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """``_with_block`` for prompts: few rows, many queries, whose scores would fill memory if they were all there at
    once. So each row gets a copy of the block's keys and values."""
    rows, _, queries, _ = query.shape
    return functional.scaled_dot_product_attention(
        query,
        torch.cat([block_key.expand(rows, -1, -1, -1), key], 2),
        torch.cat([block_value.expand(rows, -1, -1, -1), value], 2),
        attn_mask=torch.cat([block_mask.expand(rows, 1, queries, -1), mask], -1),
        scale=scaling,
    )


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class Decoder:
    """Runs rows of one model. ``most`` rows and about ``budget`` columns at a time. ``keep``: rows may go on where
    others ended, which then keep their keys and values for a while."""

    def __init__(
        self,
        model: Any,
        ends: Sequence[int],
        decode: Callable[[list[int]], str],
        most: int,
        budget: int,
        keep: bool = True,
    ) -> None:
        self.model = model
        self.ends = frozenset(ends)
        self.decode = decode
        self.budget = budget
        self.keep = keep
        # What several runs share: how many rows memory has room for, and the tokens that went through the model, with
        # the padding and without.
        self.shared = {"most": most, "computed": 0, "positions": 0}
        self.device = model.device
        self.layers = len(DynamicCache(config=model.config).layers) or model.config.get_text_config().num_hidden_layers
        self.blocks = _Blocks()
        self.kept: OrderedDict[str, _Kept] = OrderedDict()
        self.active: list[Row] = []
        self.buffer: _Buffer | None = None

    def works(self) -> bool:
        """Whether this model gives the same logits this way as in a plain pass: read at once, and token by token after
        a block. Any failure means that it does not."""
        ids = [int(i) for i in torch.arange(3, 3 + MIN_SHARED + 12) % self.model.get_input_embeddings().num_embeddings]
        rows = [Row(GenerateRequest("", None, Sampling(4), 0), ids[: len(ids) - n]) for n in (1, 4)]  # type: ignore[arg-type]
        try:
            with torch.inference_mode():
                inputs = [torch.tensor([row.ids], device=self.device) for row in rows]
                plain = [self.model(input_ids=given).logits[0, -1] for given in inputs]
                for blocked in (False, True):
                    if blocked:
                        self._add_block(ids[:MIN_SHARED])
                    new = [Row(row.request, row.ids) for row in rows]
                    for row in new:
                        row.block, row.offset = self.blocks.find(row.ids)
                    first = self._admit(new)
                    for row, logits in zip(self.active, first, strict=True):
                        row.tokens.append(int(ids[len(row.ids)]))
                        wanted = plain[0 if len(row.ids) == len(rows[0].ids) else 1]
                        if not close(logits, wanted):
                            return False
                    second = self._step()
                    for row, logits in zip(self.active, second, strict=True):
                        whole = torch.tensor([row.ids + row.tokens], device=self.device)
                        if not close(logits, self.model(input_ids=whole).logits[0, -1]):
                            return False
                    self._clear()
        except Exception as error:  # an architecture may break in any way
            log.info("the fast decoder does not fit this model: %s", error)
            return False
        finally:
            self._clear()
            self.blocks = _Blocks()
            self.shared |= {"computed": 0, "positions": 0}
        return True

    def fresh(self) -> Decoder:
        """Another one of the same model without rows, so that two runs do not meet."""
        other = copy(self)
        other.kept, other.active, other.buffer = OrderedDict(), [], None
        return other

    def run(self, pull: Callable[[], Row | None]) -> Iterator[tuple[Row, UnitFailure | None]]:
        """Yield rows as they finish, with their ``tokens``. ``pull`` gives the next row, or None when there is none at
        present: it is asked again after every yield."""
        pool: list[Row] = []
        try:
            while True:
                while len(pool) < self.shared["most"] and (row := pull()) is not None:
                    pool.append(row)
                if not pool and not self.active:
                    return
                new = self._choose(pool)
                try:
                    with torch.inference_mode():
                        logits = self._admit(new) if new else self._step()
                        done = self._take(self.active[-len(new) :] if new else self.active, logits)
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    failed = self._shrink(new, pool)
                    if failed is not None:
                        yield failed, UnitFailure("infra", "out of memory with this request alone in the batch")
                    continue
                for row in done:
                    yield row, None
        finally:
            self._clear()

    # which rows --------------------------------------------------------------------------------------------------

    def _choose(self, pool: list[Row]) -> list[Row]:
        """Rows to begin with now: those that go on from a row that is kept, then the longest. Taken out of ``pool``."""
        room = self.shared["most"] - len(self.active)
        # A few places are worth waiting for more: reading prompts one by one wastes a GPU, and not a CPU.
        least = 1 if self.device.type == "cpu" or not self.active else max(1, self.shared["most"] // 8)
        if not pool or room < least:
            return []
        self._find_blocks(pool)
        for row in pool:
            row.block, row.offset = self.blocks.find(row.ids)
        pool.sort(key=lambda row: (row.request.parent not in self.kept, -len(row.ids), row.request.id))
        widest = max([0, *(row.needs for row in self.active)])
        chosen: list[Row] = []
        for row in list(pool):
            widest = max(widest, row.needs)
            rows = len(self.active) + len(chosen) + 1
            if len(chosen) == room or (rows > 1 and rows * widest > self.budget):
                break
            chosen.append(row)
            pool.remove(row)
        return chosen

    def _find_blocks(self, pool: Sequence[Row]) -> None:
        families: dict[tuple[int, ...], list[Row]] = {}
        for row in pool:
            if len(row.ids) > MIN_SHARED and row.request.parent not in self.kept:
                families.setdefault(tuple(row.ids[:MIN_SHARED]), []).append(row)
        for family in families.values():
            if len(family) < MIN_FAMILY:
                continue
            first, last = min(row.ids for row in family), max(row.ids for row in family)
            shared = min(common_length(first, last), min(len(row.ids) for row in family) - 1)
            # A block that covers nine tenths of it already will do.
            if shared >= MIN_SHARED and self.blocks.find(first[: shared + 1])[0] < 0.9 * shared:
                if self.blocks.length + shared > MAX_BLOCK_TOKENS:
                    if self.active:
                        continue
                    self.blocks = _Blocks()
                    self.kept.clear()  # what is kept counts from a block
                with torch.inference_mode():
                    self._add_block(first[:shared])

    def _add_block(self, ids: list[int]) -> None:
        cache = DynamicCache(config=self.model.config)
        self.model(input_ids=torch.tensor([ids], device=self.device), past_key_values=cache, use_cache=True,
                   logits_to_keep=1)  # fmt: skip
        self.shared["computed"] += len(ids)
        self.shared["positions"] += len(ids)
        self.blocks.add(ids, cache)

    # the model ---------------------------------------------------------------------------------------------------

    def _admit(self, new: list[Row]) -> torch.Tensor:
        """Read the prompts of ``new`` rows, which it sorts, and add them to the batch; the logits after each, [rows,
        vocabulary]."""
        found = {id(row): self._inherited(row) for row in new}
        for row in new:
            row.width = len(row.ids) - row.block
        new.sort(key=lambda row: found[id(row)][0] - row.width)
        starts = [found[id(row)] for row in new]
        self._reserve(len(self.active) + len(new), max(row.width for row in new))
        logits, at = [], 0
        while at < len(new):
            longest = new[at].width - starts[at][0]
            end = at + max(1, PREFILL_TOKENS.get(self.device.type, PREFILL_ELSEWHERE) // longest)
            logits.append(self._read(new[at:end], starts[at:end], len(self.active) + at))
            at = end
        self.active += new
        return torch.cat(logits)

    def _inherited(self, row: Row) -> tuple[int, _Kept | None]:
        """How many of the row's own tokens a kept row has keys and values for, and that row."""
        best: tuple[int, _Kept | None] = 0, None
        name = row.request.parent
        for _ in range(4):  # the answer before the critique before the revision
            kept = self.kept.get(name)
            if kept is None:
                break
            common = min(common_length(row.ids, kept.ids), len(row.ids) - 1)
            # The same tokens of the same block, or none, must come before.
            fits = kept.block == row.block and (not row.block or kept.offset == row.offset)
            if fits and common - row.block > best[0]:
                best = common - row.block, kept
            name = kept.parent
        return best

    def _read(self, rows: list[Row], starts: list[tuple[int, _Kept | None]], index: int) -> torch.Tensor:
        """One forward pass over the prompts, less what is there: the last logits of each row. Keys and values become
        rows of the buffer from ``index`` on."""
        rest = [row.ids[row.block + start :] for row, (start, _) in zip(rows, starts, strict=True)]
        before = max(start for start, _ in starts)
        width = max(len(ids) for ids in rest)
        buffer = _Buffer(self.layers, len(rows), before + width)
        buffer.place = before
        if before:
            kept = next(k for _, k in starts if k is not None)
            for number, layer in enumerate(buffer.cache.layers):
                keys, values = kept.layers[number]
                shape = (len(rows), keys.shape[0], before + width)
                layer.keys = keys.new_zeros((*shape, keys.shape[2]))
                layer.values = values.new_zeros((*shape, values.shape[2]))
                for i, (start, source) in enumerate(starts):
                    if source is not None:
                        layer.keys[i, :, before - start : before] = source.layers[number][0][:, :start]
                        layer.values[i, :, before - start : before] = source.layers[number][1][:, :start]
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        positions = torch.zeros_like(ids)
        mask = torch.zeros((len(rows), 1, width, before + width), dtype=torch.bool)
        later = torch.ones((width, width), dtype=torch.bool).tril()
        for i, (row, tokens) in enumerate(zip(rows, rest, strict=True)):
            start, pad = starts[i][0], width - len(tokens)
            ids[i, pad:] = torch.tensor(tokens)
            positions[i, pad:] = torch.arange(row.block + start, len(row.ids))
            mask[i, 0, :, before - start : before] = True
            mask[i, 0, :, before + pad :] = later[:, pad:]
            mask[i, 0, :pad, before:] = True  # padding must look somewhere; what it sees is thrown away
        logits = self._forward(rows, ids, positions, mask, buffer, [(0, len(rows), 0)])
        self.shared["computed"] += sum(len(tokens) for tokens in rest)
        self.shared["positions"] += ids.numel()
        self._insert(rows, starts, index, buffer, width)
        return logits

    def _insert(
        self, rows: list[Row], starts: list[tuple[int, _Kept | None]], index: int, read: _Buffer, width: int
    ) -> None:
        """Put rows into the buffer from its row ``index`` on, so that they end where the others end. The last ``width``
        columns of ``read`` are new."""
        assert self.buffer is not None
        place = self.buffer.place
        for number, (layer, (keys, values)) in enumerate(zip(self.buffer.cache.layers, read.tensors(), strict=True)):
            if layer.keys is None:
                shape = (self.buffer.rows, keys.shape[1], self.buffer.columns)
                layer.keys = keys.new_zeros((*shape, keys.shape[3]))
                layer.values = values.new_zeros((*shape, values.shape[3]))
            # With the padding, which lies before a row's first column.
            layer.keys[index : index + len(rows), :, place - width : place] = keys[:, :, -width:]
            layer.values[index : index + len(rows), :, place - width : place] = values[:, :, -width:]
            for i, (row, (start, source)) in enumerate(zip(rows, starts, strict=True), index):
                if source is not None:
                    inherited = slice(place - row.width, place - row.width + start)
                    layer.keys[i, :, inherited] = source.layers[number][0][:, :start]
                    layer.values[i, :, inherited] = source.layers[number][1][:, :start]

    def _reserve(self, rows: int, width: int) -> None:
        """Make sure that the buffer has ``rows`` rows, ``width`` columns before its end and a column after it."""
        old = self.buffer
        used = max([width, *(row.width for row in self.active)])
        if old is not None and not self.active and rows <= old.rows and width < old.columns:
            old.place, old.first = width, 0
            return
        if old is not None and rows <= old.rows and width <= old.place < old.columns:
            old.first = old.place - used
            return
        columns = used + SLACK + max((row.request.sampling.max_new_tokens for row in self.active), default=SLACK)
        fresh = _Buffer(self.layers, max(rows, min(self.shared["most"], old.rows if old else 0)), columns)
        fresh.place, fresh.first = used, 0
        if old is not None and self.active:
            for target, layer in zip(fresh.cache.layers, old.cache.layers, strict=True):
                keys, values = layer.keys, layer.values
                layer.keys = layer.values = None  # so that memory holds two copies of one layer, and not of all
                target.keys = keys.new_zeros((fresh.rows, keys.shape[1], columns, keys.shape[3]))
                target.values = values.new_zeros((fresh.rows, values.shape[1], columns, values.shape[3]))
                count = min(used, old.place)
                source = slice(old.place - count, old.place)
                target.keys[: len(self.active), :, used - count : used] = keys[: len(self.active), :, source]
                target.values[: len(self.active), :, used - count : used] = values[: len(self.active), :, source]
        self.buffer = fresh

    def _step(self) -> torch.Tensor:
        """One token for every active row: its last one goes in, the logits after it come out, [rows, vocabulary]."""
        self._reserve(len(self.active), 0)
        buffer = self.buffer
        assert buffer is not None
        ids = torch.tensor([[row.tokens[-1]] for row in self.active])
        positions = torch.tensor([[len(row.ids) + len(row.tokens) - 1] for row in self.active])
        columns = torch.arange(buffer.first, buffer.place + 1)
        begins = torch.tensor([buffer.place - row.width for row in self.active])
        mask = (columns[None] >= begins[:, None])[:, None, None]
        size = -(-len(self.active) // PARTS.get(self.device.type, 1))
        parts = []
        for start in range(0, len(self.active), size):
            part = self.active[start : start + size]
            first = buffer.place - max(row.width for row in part)
            parts.append((start, start + len(part), first - buffer.first))
        logits = self._forward(self.active, ids, positions, mask, buffer, parts)
        buffer.place += 1
        for row in self.active:
            row.width += 1
        self.shared["computed"] += len(self.active)
        self.shared["positions"] += len(self.active)
        return logits

    def _forward(
        self,
        rows: Sequence[Row],
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        buffer: _Buffer,
        parts: list[tuple[int, int, int]],
    ) -> torch.Tensor:
        _STATE.mask, _STATE.parts = None, parts
        if any(row.block for row in rows):
            columns = torch.arange(self.blocks.length)[None]
            begins = torch.tensor([row.offset for row in rows])[:, None]
            ends = begins + torch.tensor([row.block for row in rows])[:, None]
            _STATE.mask = ((columns >= begins) & (columns < ends))[:, None, None].to(self.device)
        _STATE.active, _STATE.blocks = True, self.blocks.layers
        try:
            return self.model(
                input_ids=ids.to(self.device),
                position_ids=positions.to(self.device),
                attention_mask=mask.to(self.device),
                past_key_values=buffer.cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        finally:
            _STATE.active, _STATE.blocks, _STATE.mask = False, [], None

    # what comes out ----------------------------------------------------------------------------------------------

    def _take(self, rows: list[Row], logits: torch.Tensor) -> list[Row]:
        """Draw each row's next token; the rows that end with it leave the batch."""
        drawn = draw(
            logits, [row.request.sampling for row in rows], [row.request.seed for row in rows],
            [len(row.tokens) for row in rows],
        )  # fmt: skip
        for row, token in zip(rows, drawn, strict=True):
            row.tokens.append(token)
        done = [row for row in rows if self._ended(row)]
        self._remove(done)
        return done

    def _ended(self, row: Row) -> bool:
        if row.tokens[-1] in self.ends or len(row.tokens) >= row.request.sampling.max_new_tokens:
            return True
        stops = row.request.input.stop
        if not stops:
            return False
        # A token has at least a byte, so the stop string that the new token completes lies in this tail.
        tail = max(len(stop.encode()) for stop in stops) + 8
        text = self.decode(row.tokens[-tail:])
        return any(stop in text for stop in stops)

    def _remove(self, done: list[Row]) -> None:
        """Keep what the rows leave where that is wanted, and close the gaps with the last rows."""
        buffer, gone = self.buffer, {id(row) for row in done}
        assert buffer is not None
        left = len(self.active) - len(done)
        if self.keep:
            for index, row in enumerate(self.active):
                if id(row) in gone:
                    self._keep(row, index)
        holes = [i for i, row in enumerate(self.active[:left]) if id(row) in gone]
        movers = [i for i, row in enumerate(self.active[left:], left) if id(row) not in gone]
        if holes:
            columns = slice(buffer.place - max(self.active[i].width for i in movers), buffer.place)
            to, source = torch.tensor([holes, movers], device=self.device)
            for keys, values in buffer.tensors():
                keys[to, :, columns] = keys[source, :, columns]
                values[to, :, columns] = values[source, :, columns]
        for hole, mover in zip(holes, movers, strict=True):
            self.active[hole] = self.active[mover]
        del self.active[left:]

    def _keep(self, row: Row, index: int) -> None:
        assert self.buffer is not None
        ids = (row.ids + row.tokens)[: row.block + row.width]
        columns = slice(self.buffer.place - row.width, self.buffer.place)
        layers = [(k[index, :, columns].clone(), v[index, :, columns].clone()) for k, v in self.buffer.tensors()]
        self.kept[row.request.id] = _Kept(ids, row.block, row.offset, row.request.parent, layers)
        total = sum(len(kept.ids) - kept.block for kept in self.kept.values())
        while total > self.budget // 2 and self.kept:
            _, oldest = self.kept.popitem(last=False)
            total -= len(oldest.ids) - oldest.block

    # trouble -----------------------------------------------------------------------------------------------------

    def _shrink(self, new: list[Row], pool: list[Row]) -> Row | None:
        """After memory ran out: half as many rows from now on, all begun again. The row that fails alone, if so."""
        rows = [*self.active, *(row for row in new if row not in self.active)]
        self._clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) <= 1:
            return rows[0] if rows else None
        self.shared["most"] = max(1, len(rows) // 2)
        log.warning("out of memory with %d rows: going on with %d at a time", len(rows), self.shared["most"])
        for row in rows:
            row.tokens.clear()
        pool[:0] = rows
        return None

    def _clear(self) -> None:
        self.active.clear()
        self.buffer = None
        self.kept.clear()


def full_attention(config: Any) -> bool:
    """Whether every layer sees every token: then a cache may have padding in the middle, and can be copied."""
    layers = getattr(config, "layer_types", None)
    if layers is not None:
        return all(layer == "full_attention" for layer in layers)
    stateful = ("ssm_cfg", "state_size", "mamba_d_state", "linear_num_key_heads", "attention_chunk_size")
    return getattr(config, "sliding_window", None) is None and not any(hasattr(config, name) for name in stateful)


def draw(logits: torch.Tensor, samplings: Sequence[Sampling], seeds: Sequence[int], steps: Sequence[int]) -> list[int]:
    """A token per row of ``logits`` [rows, vocabulary], drawn by numbers that hang on the row's seed and step alone.
    Nothing else in the batch has a part in it. Raises ``CAIError`` where the probabilities of a row are not numbers."""
    logits = logits.float()
    likeliest = logits.argmax(-1)  # where a NaN is, that
    there = logits.gather(-1, likeliest[:, None])[:, 0].isfinite()
    tokens = torch.where(there, likeliest, -1).tolist()
    sampled = [i for i, sampling in enumerate(samplings) if sampling.temperature > 0]
    if not sampled:
        return _numbers(tokens)
    heat = torch.tensor([[samplings[i].temperature] for i in sampled], device=logits.device)
    logits = logits if len(sampled) == len(samplings) else logits[sampled]
    probabilities = (logits if (heat == 1).all() else logits / heat).softmax(-1)
    top_p = torch.tensor([[samplings[i].top_p] for i in sampled], device=logits.device)
    found = _race(nucleus(probabilities, top_p), [(seeds[i], steps[i]) for i in sampled]).tolist()
    for i, token in zip(sampled, found, strict=True):
        tokens[i] = token
    return _numbers(tokens)


def _numbers(tokens: list[int]) -> list[int]:
    """``tokens``, of which -1 stands for a row without one."""
    if min(tokens, default=0) < 0:
        raise CAIError(
            "the model's probabilities are not numbers",
            hint="its weights are damaged: train it again at a lower learning_rate, or copy it anew; where float16 "
            "is too narrow for them, set `dtype: float32`",
        )
    return tokens


def _race(probabilities: torch.Tensor, draws: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Per row of ``probabilities`` [rows, n] the place that a draw, (seed, step), falls on; -1 where they are not
    numbers.

    Of waiting times E_i ~ Exp(1), the least E_i / p_i is at i with probability p_i / sum(p), which is the Gumbel-max
    trick in other words. Rounding changes the winner only in a photo finish; where a cumulative sum passes a number
    hangs on the last bits of every probability before it. First a block of tokens wins, then a token in it, which
    takes a few hundred waiting times a row and not a vocabulary of them."""
    rows, size = probabilities.shape
    probabilities = functional.pad(probabilities, (0, -size % BLOCK)) if size % BLOCK else probabilities
    blocks = probabilities.view(rows, -1, BLOCK)
    mass = blocks.sum(-1, dtype=torch.float64)
    count = mass.shape[1]
    waits = torch.from_numpy(np.stack([waiting_times(seed, step, count + BLOCK) for seed, step in draws]))
    waits = waits.to(probabilities.device)
    block = (mass / waits[:, :count]).argmax(-1)
    inside = blocks[torch.arange(rows, device=block.device), block].double()
    place = (inside / waits[:, count:]).argmax(-1)
    return torch.where(mass.sum(-1).isfinite(), block * BLOCK + place, -1)


class Draw(LogitsProcessor):
    """For ``generate``: leaves of each row's logits the token that its request draws. start: columns of the prompts."""

    def __init__(self, requests: Sequence[GenerateRequest], start: int) -> None:
        self.samplings = [request.sampling for request in requests]
        self.seeds = [request.seed for request in requests]
        self.start = start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See ``LogitsProcessor``."""
        steps = [input_ids.shape[1] - self.start] * len(self.seeds)
        tokens = torch.tensor(draw(scores, self.samplings, self.seeds, steps), device=scores.device)
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)


def nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """``probabilities`` [rows, vocabulary] with zeros outside of the smallest set of the likeliest tokens that has at
    least ``top_p`` [rows, 1] of the mass (tokens as likely as the last one are in it too)."""
    narrow = [i for i, p in enumerate(top_p[:, 0].tolist()) if p < 1]
    if not narrow:
        return probabilities
    every = len(narrow) == len(top_p)
    some, limit = (probabilities, top_p) if every else (probabilities[narrow], top_p[narrow])
    # Sorting the whole vocabulary is slow, and the likeliest few tokens nearly always have enough of the mass.
    least = torch.zeros_like(limit)
    rows = torch.arange(len(some), device=some.device)
    for width in (64, 1024, some.shape[1]):
        width = min(width, some.shape[1])
        ordered = some[rows].topk(width, -1).values
        enough = ordered.sum(-1) >= limit[rows, 0] if width < some.shape[1] else torch.ones_like(rows, dtype=torch.bool)
        ordered, found = ordered[enough], rows[enough]
        before = ordered.cumsum(-1) - ordered
        least[found] = ordered.gather(1, ((before < limit[found]).sum(-1, keepdim=True) - 1).clamp_min(0))
        rows = rows[~enough]
        if not len(rows):
            break
    some = some.masked_fill(some < least, 0.0)
    if every:
        return some
    result = probabilities.clone()
    result[narrow] = some
    return result


def waiting_times(seed: int, step: int, count: int) -> np.ndarray:
    """``count`` positive draws of an exponential distribution with mean 1, float64, from ``seed`` and ``step`` alone:
    Philox (Salmon et al. 2011) in numpy, whose stream is the same on every machine and in every version."""
    key = int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=16).digest(), "big")
    bits = np.random.Philox(key=key).random_raw(count)
    return -np.log(((bits >> np.uint64(11)) + 0.5) * 2.0**-53)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in the words of Python, CUDA or PyTorch on a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning; found by halving, since comparing slices is fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if list(a[low:middle]) == list(b[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two rows of logits are equal up to what the number format loses on the way."""
    if found.dtype == torch.float32:
        return bool((found - wanted).abs().max() < 1e-3)
    # What all logits are off by means nothing, and the tokens that cannot come mean little.
    divergence = functional.kl_div(
        found.float().log_softmax(-1), wanted.float().log_softmax(-1), log_target=True, reduction="sum"
    )
    return bool(divergence < ROUNDING[found.dtype])
