"""Boundaries of the segments of a label map, for Boundary IoU (Cheng et al., CVPR 2021, eq. 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Cheng et al. take 2 % of the diagonal of the image.
DILATION_RATIO = 0.02


def boundary_width(height: int, width: int) -> int:
    """How many pixels deep the boundary of a segment is in an image of this size; at least one."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def boundary_mask(labels: Tensor, width: int) -> Tensor:
    """Pixels that eroding their own segment takes away, for all classes at once.

    A pixel survives the erosion if the (2 * width + 1)-square around it lies inside the image and holds its label only.
    That is `width` erosions with a 3 x 3 square, where the outside of the image belongs to no segment.

    labels: (H, W) integers; width: pixels, >= 1. Returns (H, W) bool.
    """
    height, breadth = labels.shape
    boundary = torch.ones(height, breadth, dtype=torch.bool, device=labels.device)
    if min(height, breadth) <= 2 * width:
        return boundary  # no such square fits into the image
    # A square is of one label exactly if each 2 x 2 block in it is, and 2 * width of them fit along a side. Whether any
    # block is mixed is asked of all squares together, and no class has to be looked at by itself.
    corner = labels[:-1, :-1]
    mixed = (corner != labels[:-1, 1:]) | (corner != labels[1:, :-1]) | (corner != labels[1:, 1:])
    mixed = _any_in_window(_any_in_window(mixed, 2 * width, dim=0), 2 * width, dim=1)
    boundary[width:-width, width:-width] = mixed
    return boundary


def _any_in_window(mask: Tensor, size: int, dim: int) -> Tensor:
    """out[i] = any(mask[i : i + size]) along dim, which shrinks by size - 1.

    The window is doubled until it is as long, so the number of passes grows with the logarithm of size.
    """

    def either(x: Tensor, shift: int) -> Tensor:
        length = x.shape[dim] - shift
        return x.narrow(dim, 0, length) | x.narrow(dim, shift, length)

    span = 1
    while 2 * span <= size:
        mask = either(mask, span)
        span *= 2
    return either(mask, size - span) if size > span else mask
