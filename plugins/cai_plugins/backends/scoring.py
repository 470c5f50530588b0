"""Log-probabilities of continuations, where every beginning that requests share goes through the model once.

Requests that begin alike (both orders of a comparison, its principles) become one row of a batch: a *token tree*, in
which a token sees its ancestors and nothing else. The continuations are leaves of the same tree, so one forward pass
reads everything, and logits are computed only after the tokens whose successor is asked for. What many rows begin with
(few-shot examples) is a *block* before them: its keys and values are computed once and copied into each batch.
All of it changes the speed and, by float rounding, the last digits; never the mathematics.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

import torch
from transformers import DynamicCache

from cai_core.types.backend import ScoreRequest
from cai_plugins._torch.decoding import MIN_FAMILY, MIN_SHARED, common_length, out_of_memory

# Our choice. A branch costs attention over the other branches, which is thrown away: in a small model a tree twice as
# wide as this wastes as much as a shared conversation of 200 tokens saves.
MAX_TREE = 1024
# Our choice: fewer tokens in common than this are read again, which needs no wider row.
MIN_TRUNK = 16
# Our choice: with so many tokens a CPU's matrix products are at full speed (a GPU wants more), so that a narrower tree
# begins a batch of its own instead of being padded.
ENOUGH = {"cpu": 1024}
ENOUGH_ELSEWHERE = 8192
# Our choices, for memory: entries of a batch's attention mask (64 MiB in float32) and of its logits (200 MiB).
MAX_MASK = 2**24
MAX_LOGITS = 50_000_000
# Our choices: how far a log-probability of a token may be off in the mean, in nats, for the model to be read in trees.
# Rounding makes less of the catalog models, and a token that is not seen a multiple.
ROUNDING = {torch.float32: 2e-4, torch.float16: 0.02, torch.bfloat16: 0.15}

log = logging.getLogger(__name__)


class ScoreRow:
    """A request with its tokens; ``continuations`` have a token at least."""

    def __init__(self, request: ScoreRequest, ids: list[int], continuations: list[list[int]]) -> None:
        self.request = request
        self.ids = ids
        self.continuations = continuations

    @property
    def padded(self) -> int:
        """Tokens that it takes up in a batch of its own."""
        return len(self.ids) + sum(map(len, self.continuations))


class Tree:
    """The tokens of ``rows`` after the first ``skip``, each distinct beginning once.

    ``ids`` and ``positions`` are in an order that ends with the ``asked`` tokens whose successors matter. ``wanted``
    lists (row, continuation, place among the asked, token that follows).
    """

    def __init__(self, rows: Sequence[ScoreRow], skip: int) -> None:
        self.rows = rows
        self._skip = skip
        tokens: list[int] = []
        positions: list[int] = []
        self._segments: list[tuple[int, int, list[int]]] = []
        wanted: list[tuple[int, int, int, int]] = []
        leaves = [
            (row.ids[skip:] + continuation[:-1], i, k)
            for i, row in enumerate(rows)
            for k, continuation in enumerate(row.continuations)
        ]
        # Sorted, each sequence has no longer beginning in common with any before it than with the last one.
        path: list[int] = []
        last: list[int] = []
        for sequence, i, k in sorted(leaves):
            same = common_length(sequence, last)
            start, end = len(tokens), len(tokens) + len(sequence) - same
            path = [*path[:same], *range(start, end)]
            if end > start:
                self._segments.append((start, end, path[:same]))
                tokens += sequence[same:]
                positions += range(skip + same, skip + len(sequence))
            last = sequence
            before = len(rows[i].ids) - skip - 1
            wanted += [(i, k, path[before + step], token) for step, token in enumerate(rows[i].continuations[k])]
        asked = sorted({node for _, _, node, _ in wanted})
        self.asked = len(asked)
        last_ones = set(asked)
        self._order = [node for node in range(len(tokens)) if node not in last_ones] + asked
        self.ids = [tokens[node] for node in self._order]
        self.positions = [positions[node] for node in self._order]
        places = {node: place for place, node in enumerate(asked)}
        self.wanted = [(i, k, places[node], token) for i, k, node, token in wanted]

    def apart(self) -> list[Tree]:
        """Each request in a tree of its own: for when memory does not suffice for all."""
        return [Tree([row], self._skip) for row in self.rows]

    def sees(self) -> torch.Tensor:
        """[tokens, tokens], True where the first is the second or comes after it."""
        width = len(self.ids)
        mask = torch.zeros((width, width), dtype=torch.bool)
        for start, end, before in self._segments:
            mask[start:end, before] = True
            mask[start:end, start:end] = torch.ones((end - start, end - start), dtype=torch.bool).tril()
        order = torch.tensor(self._order)
        return mask[order][:, order]


class Block:
    """Keys and values of a beginning that many rows share, per layer [1, head, token, dimension]."""

    def __init__(self, ids: list[int], layers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.ids = ids
        self.layers = layers


class Scorer:
    """Scores with one causal model whose every layer sees every token. ``computed`` counts the tokens that went
    through it, padding not included."""

    def __init__(self, model: Any, budget: int, most: int) -> None:
        self.model = model
        self.budget = budget
        self.most = most
        self.computed = 0
        self._block: Block | None = None

    def works(self) -> bool:
        """Whether this model gives the same this way as in a plain pass, up to rounding. Any failure means that it does
        not."""
        size = self.model.get_input_embeddings().num_embeddings
        ids = [int(i) for i in torch.arange(3, 3 + MIN_SHARED + 12) % size]
        # Five that make a block, and two that make a tree.
        inputs = [ids[: len(ids) - n] + ids[5 : 5 + n] for n in (0, 1, 4, 6, 6)]
        inputs += [ids[40::-1], ids[40:3:-1] + ids[5:8]]
        rows = [ScoreRow(ScoreRequest(str(n), None, ()), given, [[9, 8, 5], [9, 7, 6, 4]])  # type: ignore[arg-type]
                for n, given in enumerate(inputs)]  # fmt: skip
        apart = []
        try:
            with torch.inference_mode():
                for batch, block in self.batches(rows):
                    for tree, found in zip(batch, self.score(batch, block), strict=True):
                        for row, sums in zip(tree.rows, found, strict=True):
                            for continuation, value in zip(row.continuations, sums, strict=True):
                                plain = self._plainly(row.ids, continuation)
                                apart.append(abs(value - plain) / len(continuation))
        except Exception as error:  # an architecture may break in any way
            log.info("the tree scorer does not fit this model: %s", error)
            return False
        finally:
            self._block, self.computed = None, 0
        return fmean(apart) < ROUNDING[self.model.dtype]

    def _plainly(self, ids: list[int], continuation: list[int]) -> float:
        given = torch.tensor([ids + continuation], device=self.model.device)
        logits = self.model(input_ids=given).logits[0, -len(continuation) - 1 : -1].float()
        after = torch.tensor(continuation, device=logits.device)[:, None]
        return float(logits.log_softmax(-1).gather(1, after).sum())

    @staticmethod
    def fits(row: ScoreRow) -> bool:
        """Whether a mask for this row alone is small enough; longer ones (4,096 tokens) are better read plainly."""
        return row.padded**2 <= MAX_MASK

    # which tokens together ---------------------------------------------------------------------------------------

    def batches(self, rows: Sequence[ScoreRow]) -> Iterator[tuple[list[Tree], Block | None]]:
        """Trees of similar width under the token budget, widest first so that memory runs out at once or never."""
        alone: list[Tree] = []
        ordered = sorted(rows, key=lambda row: (row.ids, row.request.id))
        for _, group in groupby(ordered, key=lambda row: row.ids[:MIN_SHARED]):
            family = list(group)
            shared = min(common_length(family[0].ids, family[-1].ids), min(len(row.ids) for row in family) - 1)
            many = shared >= MIN_SHARED and len(self._trees(family, shared)) >= MIN_FAMILY
            if many and (block := self._read(family[0].ids[:shared])) is not None:
                yield from self._batched(self._trees(family, len(block.ids)), block)
            else:
                alone += self._trees(family, 0)
        yield from self._batched(alone, None)

    def _read(self, ids: list[int]) -> Block | None:
        """The block of ``ids``, or of nearly all of them: calls of one stage have the same examples. None where memory
        does not suffice."""
        kept = self._block
        if kept is not None and 0.9 * len(ids) <= len(kept.ids) == common_length(kept.ids, ids):
            return kept
        cache = DynamicCache(config=self.model.config)
        given = torch.tensor([ids], device=self.model.device)
        try:
            with torch.inference_mode():
                self.model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None
        self.computed += len(ids)
        self._block = Block(ids, [(layer.keys, layer.values) for layer in cache.layers])
        return self._block

    def _trees(self, family: Sequence[ScoreRow], skip: int) -> list[Tree]:
        """Neighbours that begin alike after ``skip`` tokens, together as far as the width allows. Rows are sorted."""
        groups: list[list[ScoreRow]] = []
        width, most = 0, min(MAX_TREE, self.budget - skip)
        for row in family:
            same = common_length(row.ids, groups[-1][-1].ids) - skip if groups else 0
            if same >= MIN_TRUNK and width + row.padded - skip - same <= most:
                groups[-1].append(row)
                width += row.padded - skip - same
            else:
                groups.append([row])
                width = row.padded - skip
        return [Tree(group, skip) for group in groups]

    def _batched(self, trees: list[Tree], block: Block | None) -> Iterator[tuple[list[Tree], Block | None]]:
        before = len(block.ids) if block else 0
        vocabulary = self.model.get_input_embeddings().num_embeddings
        enough = ENOUGH.get(self.model.device.type, ENOUGH_ELSEWHERE)
        batch: list[Tree] = []
        for tree in sorted(trees, key=lambda tree: (-len(tree.ids), tree.rows[0].request.id)):
            rows = len(batch) + 1
            width = len((batch or [tree])[0].ids)
            asked = max(tree.asked, *(other.asked for other in batch)) if batch else tree.asked
            if batch and (
                rows > self.most
                or (len(batch) * width >= enough and len(tree.ids) < 0.9 * width)
                or rows * (width + before) > self.budget
                or rows * width * (width + before) > MAX_MASK
                or rows * asked * vocabulary > MAX_LOGITS
            ):
                yield batch, block
                batch = []
            batch.append(tree)
        if batch:
            yield batch, block

    # the model ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, trees: Sequence[Tree], block: Block | None) -> list[list[list[float]]]:
        """For each tree and each of its rows, the sum of log P(token | before) over each continuation, in nats."""
        rows, width = len(trees), max(len(tree.ids) for tree in trees)
        before = len(block.ids) if block else 0
        ids = torch.zeros((rows, width), dtype=torch.long)
        positions = torch.zeros_like(ids)
        sees = torch.zeros((rows, 1, width, before + width), dtype=torch.bool)
        # Padding must look somewhere; what it sees is thrown away.
        sees[:, 0, range(width), range(before, before + width)] = True
        for i, tree in enumerate(trees):
            pad = width - len(tree.ids)
            ids[i, pad:] = torch.tensor(tree.ids)
            positions[i, pad:] = torch.tensor(tree.positions)
            sees[i, 0, pad:, :before] = True
            sees[i, 0, pad:, before + pad :] = tree.sees()
        model, device = self.model, self.model.device
        mask = torch.zeros(sees.shape, dtype=model.dtype).masked_fill_(~sees, torch.finfo(model.dtype).min)
        cache = DynamicCache(config=model.config)
        for layer, (keys, values) in enumerate(block.layers if block else ()):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        asked = max(tree.asked for tree in trees)
        logits = model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=mask.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=asked,
        ).logits.float()
        self.computed += sum(len(tree.ids) for tree in trees)
        totals = logits.logsumexp(-1)
        found = []
        for i, tree in enumerate(trees):
            places = torch.tensor([asked - tree.asked + place for _, _, place, _ in tree.wanted], device=device)
            tokens = torch.tensor([token for _, _, _, token in tree.wanted], device=device)
            values = (logits[i, places, tokens] - totals[i, places]).tolist()
            sums = [[0.0] * len(row.continuations) for row in tree.rows]
            for (row, k, _, _), value in zip(tree.wanted, values, strict=True):
                sums[row][k] += value
            found.append(sums)
        return found
