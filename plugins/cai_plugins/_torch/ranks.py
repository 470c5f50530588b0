"""Training in several processes that ``accelerate launch`` started, each with a share of every batch.

What is learnt must not depend on their number: batches are those of one process, a token or pair counts the same
whatever process reads it, and random numbers come from what they are for. Without a launch all of it is as if there
were one process, and nothing is sent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.utils.data import Dataset, Sampler, SequentialSampler

from cai_core.errors import CAIError, UserError

# Our choice: one process may wait for another that asks a slow judge. One that died is noticed at once by the launcher.
PATIENCE = timedelta(days=1)
BUCKET = 1 << 24  # numbers that are sent at a time; our choice: 64 MB of float32


def rank() -> int:
    """Which process this is, from 0."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def shards() -> str:
    """FSDP or DEEPSPEED, under which no process is to hold the whole model, where the launch asks for it; else ""."""
    asked = [kind for kind in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true"]
    return "".join(asked[:1])


def shares_weights() -> bool:
    """Whether it is the weights themselves that are in parts. DeepSpeed's stages 1 and 2 leave them whole."""
    return shards() == "FSDP" or (shards() == "DEEPSPEED" and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3")


def share(batch: int, where: str, of: str) -> int:
    """A process's part of ``batch``, which ``of`` names. Raises ``UserError`` where it does not divide."""
    if batch % world():
        raise UserError(
            f"{world()} processes do not divide {of}",
            where=where,
            hint="the batch stays the same however many processes share it: choose a multiple, or set launch.processes "
            "to a divisor of it",
        )
    return batch // world()


def own(count: int) -> slice:
    """Which of ``count`` things, in a row, are for this process."""
    return slice(*(count * r // world() for r in (rank(), rank() + 1)))


def connect(device: str) -> None:
    """Connect the processes. Does nothing where there is one, or where they are connected."""
    if world() > 1:
        PartialState(cpu=device == "cpu", timeout=PATIENCE)


def disconnect() -> None:
    """When all processes are done: one that leaves early breaks the others' connections."""
    if torch.distributed.is_initialized():
        wait()
        torch.distributed.destroy_process_group()


def sum_up(values: Tensor) -> Tensor:
    """The sum over all processes of a float tensor, on the CPU."""
    if world() == 1:
        return values
    everywhere = values.to(PartialState().device, copy=True)
    torch.distributed.all_reduce(everywhere)
    return everywhere.to(values.device)


def mean_of_gradients(parameters: Sequence[Tensor]) -> None:
    """Give every process the mean of all processes' gradients, bit for bit the same one. Each must have gradients of
    the same parameters. Those that FSDP2 shares out are means already."""
    if world() == 1:
        return
    waiting = [p.grad for p in parameters if p.grad is not None and not hasattr(p, "full_tensor")]
    while waiting:
        bucket = [waiting.pop()]
        while waiting and waiting[-1].dtype == bucket[0].dtype and sum(g.numel() for g in bucket) < BUCKET:
            bucket.append(waiting.pop())
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        torch.distributed.all_reduce(flat)
        flat /= world()
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def full(value: Tensor) -> Tensor:
    """All of a tensor of which FSDP2, or DeepSpeed's stage 3, keeps a part here; another as it is. All processes call
    it at the same time."""
    if hasattr(value, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([value]):
            return value.detach().clone()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def like(value: Tensor, model: Tensor) -> Tensor:
    """``value``, which every process has all of, in parts as ``model`` is; as it is where that is whole."""
    if not hasattr(model, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)


def gather(value: Any) -> list[Any]:
    """What each process has, in their order. JSON: floats come through exactly."""
    if world() == 1:
        return [value]
    device = PartialState().device
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(world())]
    torch.distributed.all_gather(sizes, torch.tensor([len(text)], device=device))
    width = max(int(size) for size in sizes)
    parts = [torch.zeros(width, dtype=torch.uint8, device=device) for _ in range(world())]
    torch.distributed.all_gather(parts, torch.nn.functional.pad(text, (0, width - len(text))))
    return [json.loads(bytes(part[: int(n)].tolist())) for part, n in zip(parts, sizes, strict=True)]


def join(values: Sequence[Any]) -> list[Any]:
    """The values of all processes, one list after the other. See ``gather``."""
    return [value for part in gather(list(values)) for value in part]


def everywhere(columns: Tensor) -> Tensor:
    """The columns of all processes side by side, without those of blank rows, which a label below 0 in the last line
    marks."""
    if world() == 1:
        return columns
    found = torch.cat([torch.tensor(part, dtype=columns.dtype) for part in gather(columns.tolist())], dim=1)
    return found[:, found[-1] >= 0]


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        torch.distributed.barrier()


def is_sharded(model: Any) -> bool:
    """Whether this process holds a part of the weights alone."""
    return any(hasattr(p, "to_local") or hasattr(p, "ds_id") for p in model.parameters()) or any(
        type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()
    )


def check_sharded(accelerator: Any, model: Any) -> None:
    """Raises ``CAIError`` where the launch asked for FSDP or DeepSpeed and plain data parallel is what runs."""
    kind, running = shards(), accelerator.distributed_type.value
    # ZeRO's stages 1 and 2 shard the optimizer's state and leave the weights whole.
    if kind and (running != kind or (kind == "FSDP" and not is_sharded(model))):
        raise CAIError(
            f"the launch asks for {kind}, and accelerate runs {running}, with the model "
            f"{'sharded' if is_sharded(model) else 'whole'} in each process",
            where="launch.config",
            hint="FSDP needs a GPU per process and at least two processes",
        )


class Shared:
    """Put before a ``Trainer``: in several processes the rows without a weight fill up a pass's last micro-batches.

    accelerate would fill them with rows from the beginning, which then count twice. The order of the rows is that of
    one process.
    """

    def blank(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """``row`` as one that adds nothing to the loss and is not counted."""
        raise NotImplementedError

    def get_train_dataloader(self: Any) -> Any:
        """See ``Trainer``."""
        if world() == 1:
            return super().get_train_dataloader()  # type: ignore[misc]
        rows = self.train_dataset
        self.train_dataset = _Filled(rows, self.blank(rows[len(rows) - 1]), self.args.per_device_train_batch_size)
        try:
            return super().get_train_dataloader()  # type: ignore[misc]
        finally:
            self.train_dataset = rows

    def _get_train_sampler(self: Any, train_dataset: Any = None) -> Any:
        if world() == 1:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        shuffle = self.args.train_sampling_strategy == "random"
        return _Order(train_dataset or self.train_dataset, self.args.data_seed if shuffle else None)


class _Filled(Dataset[Any]):
    """``rows``, and behind them as many ``blank`` ones as make their number divide into micro-batches for all."""

    def __init__(self, rows: Sequence[Any], blank: Mapping[str, Any], micro: int) -> None:
        self.rows, self.blank = rows, blank
        self.length = len(rows) + -len(rows) % (micro * world())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Any:
        return self.rows[i] if i < len(self.rows) else dict(self.blank)


class _Order(Sampler[int]):
    """The order in which one process would see the rows: accelerate's own shuffling by ``seed``, or none. Then the
    blank ones."""

    def __init__(self, data: _Filled, seed: int | None) -> None:
        self.data = data
        rows: Any = data.rows
        self.inner = SequentialSampler(rows) if seed is None else SeedableRandomSampler(rows, data_seed=seed)

    def __iter__(self) -> Iterator[int]:
        yield from self.inner
        yield from range(len(self.data.rows), len(self.data))

    def __len__(self) -> int:
        return len(self.data)

    def set_epoch(self, epoch: int) -> None:
        """Which pass comes next."""
        if isinstance(self.inner, SeedableRandomSampler):
            self.inner.set_epoch(epoch)
