"""Linear layers with packed weights: the same numbers as the layers that they take the place of."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from cai_plugins._torch.packed import PackedLinear, pack_linear_layers, packed_weights

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


def adapted(**options: object) -> nn.Module:
    torch.manual_seed(1)
    model = nn.ModuleDict(
        {"first": nn.Linear(30, 50), "second": nn.Linear(50, 20, bias=False), "plain": nn.Linear(20, 9)}
    )
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["first", "second"], init_lora_weights=False, **options)
    return inject_adapter_in_model(config, model).eval()


def through(model: nn.Module, given: torch.Tensor) -> torch.Tensor:
    return model["plain"](model["second"](model["first"](given).tanh()).tanh())


@needs_onednn
def test_sampling_sees_weights_and_adapters_as_they_are_and_leaves_them_alone() -> None:
    model, given = adapted(), torch.randn(6, 30)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):  # the second time with other weights
        wanted = through(model, given)
        with torch.no_grad(), packed_weights(model) as count:
            assert count == 3
            found = through(model, given)
        assert not torch.equal(found, wanted), "the packed copies were not used, or this test cannot tell"
        assert (found - wanted).abs().max() < 1e-5
        assert torch.equal(through(model, given), wanted), "nothing is left behind"
        through(model, given).sum().backward()
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
        with torch.no_grad():
            model["first"].lora_B["default"].weight.add_(0.5)
            model["plain"].weight.mul_(2)
        kept = {name: value.clone() for name, value in model.state_dict().items()}


@needs_onednn
@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_that_are_no_sum_of_weights_are_left_as_they_are(options: dict[str, bool]) -> None:
    model, given = adapted(**options), torch.randn(6, 30)
    wanted = through(model, given)
    with torch.no_grad(), packed_weights(model):
        assert (through(model, given) - wanted).abs().max() < 1e-5


@needs_onednn
def test_switched_off_adapters_are_not_added() -> None:
    model, given = adapted(), torch.randn(6, 30)
    for name in ("first", "second"):
        model[name].enable_adapters(False)
    wanted = through(model, given)
    with torch.no_grad(), packed_weights(model) as count:
        assert count == 3
        assert (through(model, given) - wanted).abs().max() < 1e-5


@needs_onednn
def test_an_error_while_sampling_leaves_the_layers_as_they_were() -> None:
    model = adapted()
    with pytest.raises(KeyError), packed_weights(model):
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())


def test_weights_that_are_not_numbers_are_not_packed() -> None:
    """What they lead to is told where it can be told well."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
        model[1].weight[0, 0] = torch.inf
        with packed_weights(model) as count:
            assert count == 0
    assert pack_linear_layers(model) == 0
