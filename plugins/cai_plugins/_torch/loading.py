"""Models and tokenizers from local folders, with errors that say what is missing. No code from a model is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.integrations import deepspeed

from cai_core.errors import UserError
from cai_plugins._torch.ranks import shards

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def check_folder(path: Path, *, weights: bool = True, tokenizer: bool = True) -> str:
    """What to give to ``from_pretrained``: the folder, or a hub id as it is.

    Raises ``UserError`` that names what the folder lacks. Pickled weights are refused.
    """
    if not path.exists() and not path.is_absolute() and len(path.parts) == 2:
        return path.as_posix()
    where = str(path)
    if not path.is_dir():
        raise UserError("no such model folder", where=where, hint="`cai models list` shows the models there are")
    if not (path / "config.json").is_file():
        raise UserError("no config.json: this is not a Hugging Face model folder", where=where)
    if weights and not any(path.glob("*.safetensors")):
        pickled = sorted(file.name for file in path.glob("*.bin"))
        hint = "convert them to safetensors first: pickled weights can run code" if pickled else ""
        found = f" (only {', '.join(pickled)})" if pickled else ""
        raise UserError(f"no weights as *.safetensors{found}", where=where, hint=hint)
    if tokenizer and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError("no tokenizer in this model folder", where=where, hint="copy the base model's tokenizer files")
    return where


def load_tokenizer(path: Path, *, chat: bool = True) -> Any:
    """The folder's tokenizer. Raises ``UserError`` where it is another model's, as far as its size shows that, and with
    ``chat`` where it has no chat template."""
    where = check_folder(path, weights=False)
    tokenizer = AutoTokenizer.from_pretrained(where)
    rows = AutoConfig.from_pretrained(where).get_text_config().vocab_size
    # Some models have added tokens without an embedding, such as one for pictures, which no text becomes.
    used = [tokenizer.vocab_size - 1, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    if max(token for token in used if token is not None) >= rows:
        raise UserError(
            f"the tokenizer is another model's: it has {tokenizer.vocab_size} tokens, and the model knows {rows}",
            where=str(path),
            hint="copy the tokenizer files of the model that these weights come from into the folder",
        )
    if chat and not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template, and conversations are to be rendered",
            where=str(path),
            hint="use an instruct model, or add chat_template.jinja to the folder",
        )
    return tokenizer


def load_causal(path: Path, device: str, *, all_weights: bool) -> Any:
    """A causal model to train: float32 on CPU; on a GPU bfloat16 under adapters, and float32 where ``all_weights``
    are trained (bfloat16 weights lose updates below 2**-8 of a weight; autocast computes in bfloat16). One that is to
    be sharded stays on the CPU until it is."""
    with opened_whole():
        model = AutoModelForCausalLM.from_pretrained(check_folder(path), dtype=train_dtype(device, all_weights))
    return model if shards() else model.to(device)


def load_classifier(path: Path, device: str) -> tuple[Any, bool]:
    """A model with one output per sequence, float32 (scores must not depend on how they were rounded), and whether its
    score head is new: ``path`` holds a causal model, and the caller is to initialise the head.

    Raises ``UserError`` for a classifier with more than one output.
    """
    where = check_folder(path)
    config = AutoConfig.from_pretrained(where)
    classifies = any("SequenceClassification" in name for name in config.architectures or ())
    if classifies and config.num_labels != 1:
        raise UserError(
            f"the classifier has {config.num_labels} outputs, and a reward model has one",
            where=str(path),
            hint="use a causal model or a reward model",
        )
    with opened_whole():
        model, found = AutoModelForSequenceClassification.from_pretrained(
            where, num_labels=1, dtype=torch.float32, output_loading_info=True
        )
    return model if shards() else model.to(device), any(name.startswith("score.") for name in found["missing_keys"])


@contextmanager
def opened_whole() -> Iterator[None]:
    """For opening a model. From the first training under DeepSpeed's stage 3 on, transformers opens every one in parts,
    which all processes must do at once: the first, which writes the result alone, would wait for ever."""
    kept = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


def train_dtype(device: str, all_weights: bool) -> torch.dtype:
    """See ``load_causal``."""
    return torch.float32 if device == "cpu" or all_weights else torch.bfloat16


def context_length(path: Path) -> int:
    """Positions that the model has; a large number where its configuration does not say."""
    config = AutoConfig.from_pretrained(check_folder(path, weights=False, tokenizer=False)).get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
