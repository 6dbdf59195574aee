"""Bilinear resizing, of pixel centres: `F.interpolate(mode="bilinear", align_corners=False)`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fasegr.modeling import fast_paths


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) resized to (B, C, *size).

    On the CPU `F.interpolate` copies a channels-last map to channels-first, and its result is channels-first, so that
    what follows copies it back. Where the channels of a pixel lie together, both directions are sums of two vectors of
    channels each, and a map stays in its layout.
    """
    if not (fast_paths.in_cpu_inference(x) and fast_paths.enabled("channels_last_resize")):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    x = x.permute(0, 2, 3, 1)
    for dim in (1, 2):
        if x.shape[dim] != size[dim - 1]:
            low, high, fraction = source_rows(slice(0, size[dim - 1]), x.shape[dim], size[dim - 1])
            fraction = fraction.to(x.dtype).view(-1, *(1,) * (x.ndim - 1 - dim))
            x = x.index_select(dim, low).lerp_(x.index_select(dim, high), fraction)
    return x.permute(0, 3, 1, 2)


def source_rows(rows: slice, size: int, output: int) -> tuple[Tensor, Tensor, Tensor]:
    """For `rows` of `output` in all: which two of `size` rows each is made of, and the weight of the second; (n,) each,
    on the host."""
    position = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) * (size / output) - 0.5
    position = position.clamp_(min=0)
    low = position.long().clamp_(max=size - 1)
    return low, (low + 1).clamp_(max=size - 1), position - low
