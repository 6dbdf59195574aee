"""Boundaries of the segments of a label map, for Boundary IoU (Cheng et al., CVPR 2021, eq. 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Cheng et al. take 2 % of the diagonal of the image.
DILATION_RATIO = 0.02


def boundary_width(height: int, width: int) -> int:
    """Width in pixels of the boundary of a segment in an image of this size; at least one."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def boundary_mask(labels: Tensor, width: int) -> Tensor:
    """Pixels that erosion removes from their segment, for all classes at once.

    A pixel survives the erosion if the (2 * width + 1)-square around it lies inside the image and holds only its label.
    That is `width` erosions with a 3 x 3 square, where the outside of the image belongs to no segment.

    labels: (H, W) integers; width: pixels, >= 1. Returns (H, W) bool.
    """
    height, breadth = labels.shape
    boundary = torch.ones(height, breadth, dtype=torch.bool, device=labels.device)
    if min(height, breadth) <= 2 * width:
        return boundary  # no such square fits into the image
    # A square holds one label exactly if each 2 x 2 block in it does, and 2 * width of them fit along a side. This is
    # tested for all squares at once instead of class by class.
    corner = labels[:-1, :-1]
    mixed = (corner != labels[:-1, 1:]) | (corner != labels[1:, :-1]) | (corner != labels[1:, 1:])
    mixed = _any_in_window(_any_in_window(mixed, 2 * width, dim=0), 2 * width, dim=1)
    boundary[width:-width, width:-width] = mixed
    return boundary


def _any_in_window(mask: Tensor, size: int, dim: int) -> Tensor:
    """out[i] = any(mask[i : i + size]) along dim, which shrinks by size - 1.

    The window is doubled until it has the size, so the number of passes grows with its logarithm.
    """

    def either(x: Tensor, shift: int) -> Tensor:
        length = x.shape[dim] - shift
        return x.narrow(dim, 0, length) | x.narrow(dim, shift, length)

    span = 1
    while 2 * span <= size:
        mask = either(mask, span)
        span *= 2
    return either(mask, size - span) if size > span else mask
