"""What the contracts of trainers, reward models and RL algorithms share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cai_core.types.trainer import TrainResult


def tensors(folder: Path) -> dict[str, bytes]:
    """Name -> type, shape and content of every tensor in a model folder's safetensors files."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        # The format: eight bytes of length, a JSON header with offsets, the data.
        size = int.from_bytes(raw[:8], "little")
        header: Mapping[str, Any] = json.loads(raw[8 : 8 + size])
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                kind = f"{entry['dtype']} {entry['shape']} ".encode()
                found[name] = kind + raw[8 + size + start : 8 + size + end]
    assert found, f"no weights as safetensors in {folder.name}"
    return found


def same_weights(a: Path, b: Path) -> bool:
    """Whether two model folders hold the same tensors, bit for bit."""
    return tensors(a) == tensors(b)


def check_result(result: TrainResult) -> None:
    """Metrics and curve hold finite numbers; steps rise."""
    assert isinstance(result, TrainResult)
    assert all(math.isfinite(value) for value in result.metrics.values()), dict(result.metrics)
    steps = [row["step"] for row in result.curve]
    assert steps == sorted(set(steps)), "steps rise"
    assert all(math.isfinite(value) for row in result.curve for value in row.values())


def check_model(folder: Path) -> None:
    """A complete Hugging Face folder without pickles: weights, configuration, tokenizer with chat template."""
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", "tokenizer_config.json"} <= names, names
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
    assert not pickles, f"only safetensors: {pickles}"
    config = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    assert "chat_template" in config or "chat_template.jinja" in names, "the chat template is lost"
    tensors(folder)
