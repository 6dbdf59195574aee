"""Linear layers over many tokens, through the faster of torch's two matrix libraries.

On a CPU `F.linear` in float32 is a product by MKL, which leaves AVX-512 unused on processors that are not Intel's. The
same product as a convolution of 1 x 1 goes to oneDNN, which uses it everywhere: a token (C,) is a pixel of C channels,
T tokens are a map of T x 1 pixels, and where the channels of a pixel lie together nothing is copied.

On an Intel processor the two are equally fast, and `MKL_ENABLE_INSTRUCTIONS=AVX2` shows there what the others see.
Where AVX2 is the widest there is, oneDNN is ahead by what MKL spends on the bias; its backward pass takes twice the
time of MKL's, which is taken there instead.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fasegr.modeling import fast_paths
from fasegr.modeling.convolution import NARROW_VECTORS

MANY_TOKENS = 1024
"""With fewer, what a convolution costs beyond its product outweighs the gain."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)`: (..., C) to (..., K) by weight (K, C)."""
    if not (SLOW_MKL and _suits(x, weight) and fast_paths.enabled("onednn_linear")):
        return F.linear(x, weight, bias)
    if NARROW_VECTORS and fast_paths.at_work_on_cpu(x) and torch.is_grad_enabled() and weight.requires_grad:
        return _ForwardByOneDNN.apply(x, weight, bias)
    return _by_convolution(x, weight, bias)


def _by_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    out = F.conv2d(pixels, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


class _ForwardByOneDNN(torch.autograd.Function):
    """`F.linear`, whose gradients are products by MKL."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _by_convolution(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, len(weight))
        of_x = (rows @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        of_weight = rows.t() @ x.reshape(-1, weight.shape[1]) if ctx.needs_input_grad[1] else None
        of_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _suits(x: Tensor, weight: Tensor) -> bool:
    in_float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and in_float32 and x.numel() >= MANY_TOKENS * x.shape[-1]


def _mkl_is_slow() -> bool:
    """Whether torch multiplies by MKL on a processor of AMD's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    cpuinfo = Path("/proc/cpuinfo")  # Linux; on Windows the name of the processor ends in its vendor
    about = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in about


SLOW_MKL = _mkl_is_slow()
