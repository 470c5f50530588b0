"""A tiny model in the place of the embedded one."""

from __future__ import annotations

from pathlib import Path

from cai_core.testing.tiny import tiny_model


def embedded_stand_in(cache: Path, name: str = "smollm2-135m-instruct") -> Path:
    """A tiny model in the place of the embedded one, or of another in the catalog: what ``CAI_CACHE=cache`` finds under
    its name. Returns its folder. Long few-shot prompts need more room than the tiny default, so it claims 4096
    positions."""
    import json

    model = tiny_model(cache / "models" / name)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}), encoding="utf-8")
    (model / "cai_model.json").write_text(json.dumps({"name": name}), encoding="utf-8")
    return model


def merging_tokenizer(folder: Path, *continuations: str) -> Path:
    """A tokenizer that has each of ``continuations``, which begin with a space, as one token, and reads the space after
    a colon as part of the colon's token: alone they have other tokens than after a colon. Returns the folder."""
    import re

    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    words = [": ", ":", *continuations, *(text.lstrip() for text in continuations)]
    merges = Tokenizer(WordLevel({word: i for i, word in enumerate(["?", *words])}, "?"))
    merges.pre_tokenizer = Split(Regex("|".join([*map(re.escape, words), "[^:]+"])), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=merges, unk_token="?").save_pretrained(folder)
    return folder
