"""Linear layers with packed weights: the same numbers as the layers that they take the place of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cai_plugins._torch.packed import PackedLinear, pack_linear_layers

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


class Odd(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 40), (64, 40), (300, 40), (2, 5, 40)])
def test_a_packed_layer_gives_what_float64_gives(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 70, bias=bias))
    given = torch.randn(shape)
    bias_given = model[0].bias.detach().double() if bias else 0.0
    wanted = given.double() @ model[0].weight.detach().double().T + bias_given
    weight = model[0].weight.detach().clone()
    assert pack_linear_layers(model) == 1
    assert isinstance(model[0], PackedLinear)
    with torch.inference_mode():
        found = model(given)
        assert found.shape == (*shape[:-1], 70)
        assert (found.double() - wanted).abs().max() < 1e-5
        assert torch.equal(model[0].weight, weight)


@needs_onednn
def test_only_plain_float32_layers_are_packed() -> None:
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda module, given, out: out + 1)
    model = nn.ModuleDict(
        {
            "plain": nn.Sequential(nn.Linear(4, 4)),
            "odd": Odd(4, 4),
            "bf16": nn.Linear(4, 4).bfloat16(),
            "hooked": hooked,
        }
    )
    assert pack_linear_layers(model) == 1
    assert isinstance(model["plain"][0], PackedLinear)


@needs_onednn
def test_a_layer_shared_by_name_keeps_the_embedding() -> None:
    """The output layer of many models is the embedding; packing one must not take the other away."""
    embedding, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    pack_linear_layers(model)
    ids = torch.tensor([1, 2])
    with torch.inference_mode():
        assert torch.allclose(model["head"](embedding(ids)), embedding(ids) @ embedding.weight.T, atol=1e-6)
