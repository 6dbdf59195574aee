"""Linear layers over many tokens, through the faster of torch's two matrix libraries.

On a CPU `F.linear` in float32 is a product by MKL, which leaves AVX-512 unused on processors that are not Intel's. The
same product as a convolution of 1 x 1 goes to oneDNN, which uses it everywhere: a token (C,) is a pixel of C channels,
T tokens are a map of T x 1 pixels, and where the channels of a pixel lie together nothing is copied.

On an Intel processor the two are equally fast, and `MKL_ENABLE_INSTRUCTIONS=AVX2` shows there what the others see.
Where AVX2 is the widest there is, MKL is no slower forward, and its backward pass takes half of oneDNN's time.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.modeling.ops import switches as fast_paths

MANY_TOKENS = 1024
"""With fewer, what a convolution costs beyond its product outweighs the gain."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)`: (..., C) to (..., K) by weight (K, C)."""
    if not (SLOW_MKL and _suits(x, weight) and fast_paths.enabled("onednn_linear")):
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    out = F.conv2d(pixels, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _suits(x: Tensor, weight: Tensor) -> bool:
    in_float32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and in_float32 and x.numel() >= MANY_TOKENS * x.shape[-1]


def _mkl_is_slow() -> bool:
    """Whether torch multiplies by MKL on a processor of AMD's that has AVX-512."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpuinfo = Path("/proc/cpuinfo")  # Linux; on Windows the name of the processor ends in its vendor
    about = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in about


SLOW_MKL = _mkl_is_slow()
