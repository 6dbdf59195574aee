"""Padding of maps to whole windows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fasegr.modeling.ops.graph_export import exporting


def round_up(size: int, step: int) -> int:
    """The next multiple of `step`."""
    return (size + step - 1) // step * step


def pad_to_multiple(x: Tensor, step: int) -> Tensor:
    """(B, H, W, C) padded with zeros at the right and bottom to multiples of `step`; without a copy if it is one."""
    bottom, right = (round_up(size, step) - size for size in x.shape[1:3])
    if exporting() or bottom or right:  # a graph pads images of any size
        return F.pad(x, (0, 0, 0, right, 0, bottom))
    return x
