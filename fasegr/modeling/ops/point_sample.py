"""Mask maps sampled bilinearly at points, all maps of an image at the same ones.

Coordinates are (x, y) in [0, 1]^2 over the whole map, whatever its resolution: (0, 0) is the outer corner of the first
pixel, whose centre is at (0.5 / W, 0.5 / H). Outside the map everything is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasegr.modeling.ops import switches


def sample_points(maps: Tensor, coords: Tensor) -> Tensor:
    """Bilinear samples of every map at the same points: (N, H, W) at (P, 2) -> (N, P).

    maps: floating point (differentiable) or bool. coords: float32 or float64; the samples have their dtype.
    """
    grid = (2 * coords - 1)[None, :, None]
    return F.grid_sample(maps[None].to(coords.dtype), grid, align_corners=False)[0, :, :, 0]


class TableSampler:
    """`sample_points` for maps of one size at the points of one image: a product with one sparse matrix.

    The maps become a table with a row of N values for each pixel, framed by zeros, and each point is a weighted bag of
    four rows (`F.embedding_bag`), so that no point needs a validity test. One column of zeros serves both sides, since
    after the last column comes the first of the next row: pixel (y, x) is row (y + 1) (W + 1) + x + 1.

    The gradient is summed in a fixed order on every device; that of grid_sample is not on a GPU.
    """

    def __init__(self, rows: Tensor, weights: Tensor, starts: Tensor, height: int, width: int):
        """rows, weights: (P, 4), by `bags_of_points`; samples have the dtype of the weights. starts: (P,), where the
        bags begin: 0, 4, 8, ..., the same for all images."""
        self.rows, self.weights, self.starts = rows, weights, starts
        self.height, self.width = height, width
        self._transposed: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, maps: Tensor) -> Tensor:
        """maps: (N, H, W), floating point (differentiable) or bool. Returns (N, P) in the dtype of the points."""
        if maps.shape[1:] != (self.height, self.width):
            raise ValueError(f"maps have shape {tuple(maps.shape)}; expected (N, {self.height}, {self.width})")
        if maps.dtype == torch.bool:
            return self._sample_bool(maps)
        return _TableSample.apply(maps, self)

    def _sample_bool(self, maps: Tensor) -> Tensor:
        """Targets are many and large: only the sampled pixels are converted to floating point."""
        framed = F.pad(maps, (1, 0, 1, 2)).view(torch.uint8).flatten(1)
        corners = framed.index_select(1, self.rows.flatten()).view(-1, *self.rows.shape)  # (N, P, 4)
        return (corners * self.weights).sum(2)

    def sample(self, maps: Tensor) -> Tensor:
        """(N, H, W) -> (N, P), laid out point by point as the bags give it."""
        if not len(maps):  # embedding_bag refuses rows without values
            return self.weights.new_zeros(0, len(self.rows))
        table = maps.new_zeros(self.height + 3, self.width + 1, len(maps), dtype=self.weights.dtype)
        table[1 : self.height + 1, 1:] = maps.permute(1, 2, 0)
        rows, weights = self.rows.flatten(), self.weights.flatten()
        return F.embedding_bag(rows, table.flatten(0, 1), self.starts, mode="sum", per_sample_weights=weights).t()

    def spread(self, samples: Tensor) -> Tensor:
        """The transpose of `sample`, (N, P) -> (N, H, W): a bag of points for each pixel."""
        if not len(samples):
            return samples.new_zeros(0, self.height, self.width)
        points, offsets, weights = self._transpose()
        table = F.embedding_bag(
            points,
            samples.t().contiguous(),
            offsets,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )
        table = table.view(self.height + 3, self.width + 1, len(samples))
        return table[1 : self.height + 1, 1:].permute(2, 0, 1).contiguous()

    def _transpose(self) -> tuple[Tensor, Tensor, Tensor]:
        """The points that sample each row of the table, where those of a row begin, and their weights."""
        if self._transposed is None:
            rows, order = self.rows.flatten().int().sort(stable=True)  # half the time of int64
            bounds = torch.arange((self.height + 3) * (self.width + 1) + 1, dtype=rows.dtype, device=rows.device)
            self._transposed = order // 4, torch.searchsorted(rows, bounds), self.weights.flatten()[order]
        return self._transposed


class _TableSample(torch.autograd.Function):
    """(N, H, W) -> (N, P). No gradient for the points: they are drawn, not predicted."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, sampler: TableSampler) -> Tensor:
        ctx.sampler, ctx.maps_dtype = sampler, maps.dtype
        return sampler.sample(maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.sampler.spread(grad).to(ctx.maps_dtype), None


def supports_table(coords: Tensor) -> bool:
    """Whether `TableSampler` is used for these points: in float32, on a CPU or an NVIDIA GPU.

    float64 is for comparison with other programs: with the same rounding, equally uncertain points are ranked in the
    same way. Not every torch has embedding_bag for other devices.
    """
    return coords.dtype != torch.float64 and coords.device.type in ("cpu", "cuda")


def bags_of_points(coords: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """For points (..., 2), the rows of the table of `TableSampler` that each is a mixture of, and their weights; both
    (..., 4)."""
    # With the frame, the centre of the first pixel is at 1. Beyond the frame everything is zero, as on it.
    x = (coords[..., 0] * width + 0.5).clamp(0, width + 1)
    y = (coords[..., 1] * height + 0.5).clamp(0, height + 1)
    left, top = x.long().clamp(max=width), y.long().clamp(max=height)
    right_share, bottom_share = x - left, y - top
    first = top * (width + 1) + left
    rows = torch.stack((first, first + 1, first + width + 1, first + width + 2), -1)
    columns = torch.stack((1 - right_share, right_share), -1)
    weights = torch.stack((1 - bottom_share, bottom_share), -1).unsqueeze(-1) * columns.unsqueeze(-2)
    return rows, weights.flatten(-2)


def point_samplers(coords: Tensor, height: int, width: int) -> list[Callable[[Tensor], Tensor]]:
    """For each image a function (N, height, width) -> (N, P) that samples like `sample_points(maps, coords[image])`.

    coords: (B, P, 2).
    """
    if not supports_table(coords) or not switches.enabled("point_table"):
        return [partial(sample_points, coords=points) for points in coords]
    rows, weights = bags_of_points(coords, height, width)  # of all images at once
    starts = torch.arange(0, 4 * coords.shape[1], 4, device=coords.device)
    return [TableSampler(*bags, starts, height, width) for bags in zip(rows, weights, strict=True)]
