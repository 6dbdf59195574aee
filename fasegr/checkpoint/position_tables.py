"""Swin's relative-position tables for windows of another size than the weights were trained with.

A table holds a row for each offset (dy, dx) in a window: (2 * window - 1) ** 2 rows, one column a head.
"""

import math

from torch import Tensor
from torch.nn import functional as F

_TABLE = ".relative_position_bias_table"


def can_be_resized(name: str, there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    """Whether the entry `name` of shape `there` is a table that can be resized to the shape `here`."""
    if not name.endswith(_TABLE) or len(there) != 2 or there[1:] != here[1:]:
        return False
    return _side(there) > 0 and _side(here) > 0


def resize(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The table (rows, heads) for the offsets of another window, `shape` (rows, heads), by bicubic interpolation."""
    old, new = _side(tuple(table.shape)), _side(shape)
    grid = table.float().T.reshape(1, -1, old, old)
    return F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False).reshape(-1, new * new).T


def _side(shape: tuple[int, ...]) -> int:
    """Offsets along one axis; 0 if `shape` does not belong to a square window."""
    side = math.isqrt(shape[0])
    return side if side * side == shape[0] and side % 2 else 0
