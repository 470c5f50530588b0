"""How many rows, and tokens' keys and values, a batch may have on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

# Our choices. An eighth of the memory, since a batch that grows is copied once and texts that went before are kept
# too, beside the weights.
SHARE = 8
LEAST = 4096
# On two cores, throughput rises steeply up to about 64 rows and little beyond, and 64k tokens are 64 rows of 1,000. A
# step of a GPU takes about as long for 512 rows as for 64.
MOST, MOST_ELSEWHERE = {"cpu": 65536}, 2**20
ROWS, ROWS_ELSEWHERE = {"cpu": 64}, 512


def most_rows(device: torch.device) -> int:
    """Rows of a batch that ``device`` is at full speed with: 64 on a CPU, 512 on a GPU."""
    return ROWS.get(device.type, ROWS_ELSEWHERE)


def token_budget(model: Any) -> int:
    """Tokens that an eighth of the memory of ``model``'s device can hold keys and values of, 4,096 at least and 65,536
    at most, on a GPU 1,048,576. It depends on the machine and the model, not on what else runs."""
    if model.device.type == "cuda":
        room = torch.cuda.get_device_properties(model.device).total_memory
    else:
        room = min(psutil.virtual_memory().total, _container_limit())
    return max(LEAST, min(MOST.get(model.device.type, MOST_ELSEWHERE), room // SHARE // bytes_per_token(model)))


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
