"""The sum of row-column decoupled attention."""

from __future__ import annotations

import torch
from torch import Tensor

from fasegr.modeling.ops.graph_export import exporting


def row_column_sum(over_x: Tensor, over_y: Tensor, values: Tensor) -> Tensor:
    """Values summed with the weights a(y) b(x): over_x (B, M, Q, w), over_y (B, M, Q, h) and values (B, M, h, w, D) to
    (B, M, Q, D)."""
    # The longer side is summed first: the result, Q x side x C, is the largest tensor here except the values. A graph
    # is for images of any size, and sums columns first.
    if exporting() or values.shape[3] >= values.shape[2]:
        left = torch.einsum("bmqx,bmyxd->bmqyd", over_x, values)
        return torch.einsum("bmqy,bmqyd->bmqd", over_y, left)
    left = torch.einsum("bmqy,bmyxd->bmqxd", over_y, values)
    return torch.einsum("bmqx,bmqxd->bmqd", over_x, left)
