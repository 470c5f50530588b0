"""Texts as the hidden states of a language model, for a rating to be fitted to (``regressor.py``).

The model stays as it is; only a linear read-out is learnt, as of a probe (Alain and Bengio 2016, arXiv 1610.01644). The
paper fine-tunes the whole model (section 4.5); this needs one pass over each text and no training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from cai_core.types.context import StageContext
from cai_plugins._torch.chat import Chat
from cai_plugins._torch.loading import check_folder, context_length, load_tokenizer

MOST_TOKENS = 1024  # of a text, its last ones: there is the answer; the context of Bai et al. 2022a
BATCH_TOKENS = 8192  # padded; ours


class States:
    """The mean over a text's tokens of the model's last hidden states, float32. Special tokens inside of a text are
    taken apart, as everywhere. Raises ``UserError`` where ``folder`` holds no model."""

    def __init__(self, folder: Path, context: StageContext) -> None:
        tokenizer = load_tokenizer(folder, chat=False)
        self.chat = Chat(tokenizer, folder)
        self.limit = min(MOST_TOKENS, context_length(folder))
        self.context = context
        model = AutoModel.from_pretrained(check_folder(folder), dtype=torch.float32)
        self.model = model.to(context.device).eval()

    def __call__(self, texts: Sequence[str]) -> Any:
        """One row per text."""
        encoded = [self._ids(text) for text in texts]
        found = np.zeros((len(texts), self.model.config.get_text_config().hidden_size))
        done = 0
        for some in _batches(encoded):
            width = len(encoded[some[0]])
            ids = torch.tensor([encoded[i] + [0] * (width - len(encoded[i])) for i in some])
            mask = torch.tensor([[1] * len(encoded[i]) + [0] * (width - len(encoded[i])) for i in some])
            ids, mask = ids.to(self.context.device), mask.to(self.context.device)
            with torch.inference_mode():
                states = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            summed = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            found[some] = summed.float().cpu().numpy()
            done += len(some)
            self.context.progress.update(done, len(texts), "texts read")
        return found

    def _ids(self, text: str) -> list[int]:
        """At least one token."""
        return list(self.chat.tokenizer(self.chat.plain(text) or " ")["input_ids"])[-self.limit :]


def _batches(encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of texts of like length, the longest first in each."""
    some: list[int] = []
    for i in sorted(range(len(encoded)), key=lambda i: -len(encoded[i])):
        if some and len(encoded[some[0]]) * (len(some) + 1) > BATCH_TOKENS:
            yield some
            some = []
        some.append(i)
    if some:
        yield some
