"""What is remembered is what would be computed: after any change, under any autocast, in training and in inference."""

import copy

import pytest
import torch
from torch import nn

from fasegr.modeling import ops
from fasegr.modeling.layers import ConvNorm, FrozenBatchNorm2d, Linear


def counting(function):
    def counted(*arguments):
        counted.calls += 1
        return function(*arguments)

    counted.calls = 0
    return counted


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.mul_(3),
        lambda x: setattr(x, "data", torch.ones(2)),
        lambda x: nn.utils.vector_to_parameters(torch.ones(2), [x]),
        lambda x: x.requires_grad_(False).copy_(torch.ones(2)),
    ],
)
def test_a_changed_tensor_is_noticed(change):
    kept, double, x = ops.Kept(), counting(lambda x: 2 * x), nn.Parameter(torch.zeros(2))
    with torch.no_grad():
        assert kept(double, x) is kept(double, x) and double.calls == 1
        change(x)
        assert torch.equal(kept(double, x), 2 * x) and double.calls == 2


def test_other_arguments_and_sizes():
    kept, ones = ops.Kept(), counting(torch.ones)
    assert kept(ones, (2, 3)).shape == (2, 3) and kept(ones, (2, 3)).shape == (2, 3) and ones.calls == 1
    assert kept(ones, (3, 3)).shape == (3, 3)
    assert copy.deepcopy(kept)(ones, (3, 3)).shape == (3, 3) and ones.calls == 3


def test_gradients_flow_and_then_nothing_is_kept():
    kept, x = ops.Kept(), nn.Parameter(torch.ones(2))
    with torch.no_grad():
        kept(torch.square, x)
    kept(torch.square, x).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 2.0))
    assert kept._result is None


def test_what_inference_mode_kept_serves_training():
    layer = ConvNorm(3, 4, 1, bias=False, norm=FrozenBatchNorm2d(4))
    with torch.inference_mode():
        layer(torch.rand(1, 3, 2, 2))
    layer(torch.rand(1, 3, 2, 2)).sum().backward()
    assert layer.weight.grad.isfinite().all()


def layers():
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(4)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2)
    return [
        (Linear(3, 4), torch.rand(5, 3)),
        (ConvNorm(3, 4, 3, bias=False, norm=norm), torch.rand(1, 3, 6, 6)),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_autocast_inference_keeps_casts_and_follows_the_weights(which):
    layer, x = layers()[which]
    fresh = copy.deepcopy(layer)
    for _ in range(3):
        for inside in (True, True, False):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
                assert torch.equal(layer(x), copy.deepcopy(fresh)(x))
        for module in (layer, fresh):  # a step of training between
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = module(x).float().square().sum()
            module.zero_grad()
            loss.backward()
            torch.optim.SGD(module.parameters(), lr=0.1).step()
            if which:
                module.norm.running_var.mul_(2)
        assert torch.equal(layer.weight, fresh.weight)


def test_scaled_weight_is_rounded_once_and_has_the_gradient_of_the_plain_product():
    weight, scale = torch.randn(4, 3, 1, 1, requires_grad=True), torch.rand(4, 1, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scaled = ops.scaled_for_products(weight, scale)
    assert torch.equal(scaled, (weight * scale).bfloat16())
    upstream = torch.randn(4, 3, 1, 1).bfloat16()
    (expected,) = torch.autograd.grad((weight * scale).bfloat16(), weight, upstream)
    assert torch.equal(torch.autograd.grad(scaled, weight, upstream)[0], expected)
    assert ops.scaled_for_products(weight, scale).dtype == torch.float32
