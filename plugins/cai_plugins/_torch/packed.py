"""Linear layers for a CPU, with their weights in the order in which oneDNN reads them.

PyTorch multiplies float32 matrices on a CPU with the library that it was built with (MKL on x86), which puts the
weights in order again on every call. In a decoding step, few rows meet many weights, and that is much of the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Our choice: oneDNN orders the weights for about as many rows as a decoding step has; other numbers work too.
ROWS = 64


class PackedLinear(nn.Module):
    """What ``nn.Linear`` gives, up to float rounding, without gradients. The plain weights are not kept: ``weight``
    makes a copy of them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """A copy, [out, in]."""
        return self._packed.to_dense()

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        return torch.ops.mkldnn._linear_pointwise(given, self._packed, self.bias, "none", [], "")


@torch.no_grad()
def pack_linear_layers(model: Any) -> int:
    """Replace the plain ``nn.Linear`` layers of a float32 model on a CPU, and return how many. A layer whose packed
    form gives something else, or that this build of PyTorch cannot pack, stays as it is."""
    if not _available():
        return 0
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child._forward_hooks or child._forward_pre_hooks:  # they would be lost
                continue
            if _plain(child) and (packed := _packed(child)) is not None:
                setattr(parent, name, packed)
                count += 1
    return count


@contextmanager
def packed_weights(model: Any) -> Iterator[int]:
    """For as long as a float32 model under training samples on a CPU: its linear layers compute with packed copies of
    their weights as they are now, adapters of LoRA added to them. The weights themselves are not touched; the copies
    take as much memory as the linear layers. Yields how many layers there are."""
    changed: list[nn.Module] = []
    try:
        with torch.no_grad():
            for module, packed in _copies(model):
                module.forward = lambda given, *_, packed=packed, **__: packed(given)  # type: ignore[method-assign]
                changed.append(module)
        yield len(changed)
    finally:
        for module in changed:
            del module.forward


def _copies(model: Any) -> Iterator[tuple[nn.Module, PackedLinear]]:
    from peft.tuners.lora import Linear as Adapted

    if not _available():
        return
    inner: set[nn.Module] = set()
    for module in model.modules():  # a layer comes before what lies in it
        if module in inner:
            continue
        base = module
        if type(module) is Adapted:
            names = module.active_adapters
            # Other kinds (DoRA, a bias in the adapter, an adapter that was merged) are more than a sum of weights.
            if module.merged or any(
                n not in module.lora_A or module.lora_variant.get(n) or module.lora_bias.get(n) for n in names
            ):
                continue
            base = module.get_base_layer()
            inner.update(m for m in module.modules() if m is not module)
        if not _plain(base):
            continue
        whole = base
        if base is not module and not module.disable_adapters:
            whole = nn.Linear(base.in_features, base.out_features, device="meta")
            delta = sum((module.get_delta_weight(name) for name in names), torch.zeros(()))
            whole.weight = nn.Parameter(base.weight + delta, requires_grad=False)
            whole.bias = base.bias
        if (packed := _packed(whole)) is not None:
            yield module, packed


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _plain(module: nn.Module) -> bool:
    """A float32 linear layer on a CPU, and no subclass: those compute something else."""
    return type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu"


def _packed(linear: nn.Linear) -> PackedLinear | None:
    given = torch.linspace(-1, 1, 3 * linear.in_features).sin().view(3, -1)
    try:
        packed = PackedLinear(linear)
        wanted, found = linear(given), packed(given)
    except (RuntimeError, NotImplementedError):
        return None
    most = float(wanted.abs().max())
    return packed if math.isfinite(most) and torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * most) else None
