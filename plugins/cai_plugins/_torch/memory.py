"""How many tokens' keys and values the memory of this machine has room for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

# Our choices. An eighth of the memory, since a batch that grows is copied once and texts that went before are kept
# too, beside the weights. More than 64k tokens are 64 rows of 1,000 tokens: wider batches gain little.
SHARE = 8
LEAST, MOST = 4096, 65536


def token_budget(model: Any) -> int:
    """Tokens that an eighth of the memory of ``model``'s device can hold keys and values of, 4,096 at least and 65,536
    at most. It depends on the machine and the model, not on what else runs."""
    if model.device.type == "cuda":
        room = torch.cuda.get_device_properties(model.device).total_memory
    else:
        room = min(psutil.virtual_memory().total, _container_limit())
    return max(LEAST, min(MOST, room // SHARE // bytes_per_token(model)))


def bytes_per_token(model: Any) -> int:
    """Bytes of the keys and values of one token over all layers; without attention heads, as if there were one."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    shared = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * shared * width * model.dtype.itemsize)


def _container_limit() -> int:
    """The memory limit of the container that this process lives in; without one, more than any machine has."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return 2**62
