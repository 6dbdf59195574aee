"""The points at which the losses compare masks (PointRend, Mask2Former): random ones, and the most uncertain of them.

All maps of an image are sampled at the same points, by `ops.point_samplers`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PointDraw = Callable[[int, int, torch.device, torch.dtype], Tensor]
"""(images, points, device, dtype) -> (images, points, 2) coordinates in [0, 1]^2."""


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 are kept."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def random_points(images: int, points: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(images, points, 2) coordinates, uniform in [0, 1)^2: the only random numbers of the losses."""
    return torch.rand(images, points, 2, device=device, dtype=dtype)


def uncertain_points(logits: Tensor, count: int) -> Tensor:
    """The `count` most uncertain of the C points, for each mask: those with the logits nearest to zero.

    logits: (N, C). Returns (N, count) int64 indices into C, in no particular order.
    """
    if not 0 <= count <= logits.shape[1]:
        raise ValueError(f"cannot choose {count} uncertain points out of {logits.shape[1]}; draw more candidates")
    return logits.detach().abs().topk(count, largest=False, sorted=False).indices
