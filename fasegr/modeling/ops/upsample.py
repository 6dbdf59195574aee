"""Bilinear upsampling by two of one image's map whose channels lie together, in inference on the CPU.

For one image torch 2.11 takes a form that goes pixel by pixel, and its result has another layout than the maps that it
is added to; for several it takes a quick one. Twice the size is a case of its own: along one side, the pixels of the
result lie a quarter of a pixel before and after those of the source, so that

    out[2 i] = 3/4 x[i] + 1/4 x[i - 1]        out[2 i + 1] = 3/4 x[i] + 1/4 x[i + 1]

with the border repeated: sums of whole maps, which a CPU takes at the speed of its caches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fasegr.modeling.ops import switches as fast_paths


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`F.interpolate(x, size, mode="bilinear")`: (B, C, h, w) to (B, C, *size)."""
    doubles = len(x) == 1 and tuple(size) == (2 * x.shape[2], 2 * x.shape[3])
    if doubles and fast_paths.in_cpu_inference(x) and fast_paths.enabled("doubling"):
        return _doubled(_doubled(x.permute(0, 2, 3, 1), 1), 2).permute(0, 3, 1, 2)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _doubled(x: Tensor, dim: int) -> Tensor:
    """Twice as long along `dim`."""
    n = x.shape[dim]
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim)
    after = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim)
    return torch.stack([x.lerp(before, 0.25), x.lerp(after, 0.25)], dim + 1).flatten(dim, dim + 1)
