"""Changes of type that autocast would make again and again, made once: on a GPU each is a launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KINDS = ("cuda", "cpu")  # of devices; on others (MPS), autocast makes all its changes itself


def for_products(x: Tensor) -> Tensor:
    """`x` in the type in which autocast computes products: for a tensor that several products take, since autocast
    changes it for each. Outside autocast, `x`."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if _changes(x) else x


def scaled_for_products(weight: Tensor, scale: Tensor) -> Tensor:
    """`for_products(weight * scale)`, differentiable in `weight`, without the product in the wider type."""
    if _changes(weight) and not torch.compiler.is_compiling():
        return _ScaledForProducts.apply(weight, scale, torch.get_autocast_dtype(weight.device.type))
    return weight * scale


class _ScaledForProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.mul(weight, scale, out=torch.empty_like(weight, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return grad * scale, None, None


def enabled_for(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`."""
    return x.device.type in KINDS and torch.is_autocast_enabled(x.device.type)


def _changes(x: Tensor) -> bool:
    return x.dtype == torch.float32 and enabled_for(x)
