"""Bilinear resizing of large maps, a tile of rows at a time.

At image size, the masks of all queries and the scores of all classes are the largest tensors of the program. A row of
a resized map depends on two rows of the source, so a tile needs only a few of them, and the whole map never has to
exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fasegr.modeling import ops

Size = tuple[int, int]


def row_tiles(first: int, last: int, elements_per_row: int, device: torch.device) -> Iterator[slice]:
    """Rows [first, last) in slices of as many rows as fit a tile."""
    step = ops.items_per_tile(elements_per_row, device)
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))


def resize_rows(rows_of: Callable[[int, int], Tensor], rows: slice, size: Size, output: Size) -> Tensor:
    """(N, rows, output width): `rows` of a map (N, *size) that is resized to `output`.

    rows_of: returns rows [first, last) of the map, (N, last - first, width). The result is that of
    `F.interpolate(mode="bilinear", align_corners=False)`.
    """
    if size == output:
        return rows_of(rows.start, rows.stop)
    low, high, fraction = source_rows(rows, size[0], output[0])
    first, last = int(low[0]), int(high[-1]) + 1
    source = rows_of(first, last)
    low, high = (ops.to_device(torch.from_numpy(index - first), source.device) for index in (low, high))
    fraction = ops.to_device(torch.from_numpy(fraction).to(source.dtype), source.device)
    mixed = torch.lerp(source[:, low], source[:, high], fraction.unsqueeze(1))
    return F.interpolate(mixed[None], size=(len(low), output[1]), mode="bilinear", align_corners=False)[0]


def source_rows(rows: slice, size: int, output: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `rows` of `output` rows: the two of `size` rows that each depends on, and the weight of the second; (n,)."""
    position = ((np.arange(rows.start, rows.stop) + 0.5) * (size / output) - 0.5).clip(min=0)
    low = position.astype(np.int64).clip(max=size - 1)
    return low, (low + 1).clip(max=size - 1), position - low


def elements_per_row(planes: int, padded: Size, image: Size, output: Size) -> int:
    """Elements of one output row in `planes` maps, or of the image rows that it is made of if these have more."""
    return planes * max(padded[1], output[1]) * max(1, image[0] // output[0])
