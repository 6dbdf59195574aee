"""Points drawn in an image, and mask maps read at them.

The set loss compares masks at sampled points instead of at every pixel (PointRend, Mask2Former). All maps of an image
are read at the *same* points, so reading them is a product with one sparse matrix of four bilinear weights a point:
`TableSampler` makes it once, and every layer, query and target of the image uses it.

Coordinates are (x, y) in [0, 1]^2 over the whole map, whatever its resolution: (0, 0) is the outer corner of the first
pixel, whose centre lies at (0.5 / W, 0.5 / H). Outside of the map everything is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PointDraw = Callable[[int, int, torch.device, torch.dtype], Tensor]
"""(images, points, device, dtype) -> (images, points, 2) coordinates in [0, 1]^2."""

CPU_BLOCK = 1 << 21
ACCELERATOR_BLOCK = 1 << 27
"""Samples taken at a time. On a CPU, what stays in its cache: in larger blocks new memory costs more than calls. On an
accelerator, half a gigabyte of float32 for each temporary."""


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay what they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def layers_at_once(samples_per_layer: int, device: torch.device) -> int:
    """How many layers to sample together: a block's worth, and at least one."""
    block = CPU_BLOCK if device.type == "cpu" else ACCELERATOR_BLOCK
    return max(1, block // max(1, samples_per_layer))


def random_points(images: int, points: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(images, points, 2) coordinates, uniform in [0, 1)^2: the only random numbers of the losses."""
    return torch.rand(images, points, 2, device=device, dtype=dtype)


def uncertain_points(logits: Tensor, count: int) -> Tensor:
    """Which `count` of the C points are the least certain, for each mask: those with the logits nearest to zero.

    logits: (N, C). Returns (N, count) int64 indices into C, in no particular order. Of equally uncertain points, those
    that torch.topk takes where logits are float64 or on an accelerator, else any.
    """
    if not 0 <= count <= logits.shape[1]:
        raise ValueError(f"cannot choose {count} uncertain points out of {logits.shape[1]}; draw more candidates")
    certainty = logits.detach().abs()
    if certainty.device.type != "cpu" or certainty.dtype != torch.float32 or count == 0:
        return certainty.topk(count, largest=False, sorted=False).indices
    # NumPy's vectorised selection takes a third of the time of torch.topk. A row at a time stays in the cache.
    chosen = np.empty((len(certainty), count), dtype=np.int64)
    for row, values in zip(chosen, certainty.contiguous().numpy(), strict=True):
        row[:] = np.argpartition(values, count - 1)[:count]
    return torch.from_numpy(chosen)


def sample_points(maps: Tensor, coords: Tensor) -> Tensor:
    """Bilinear samples of every map at the same points: (N, H, W) at (P, 2) -> (N, P). The plain form.

    maps: floating point (differentiable) or bool. coords: float32 or float64; the samples have their dtype.
    """
    grid = (2 * coords - 1)[None, :, None]
    return F.grid_sample(maps[None].to(coords.dtype), grid, align_corners=False)[0, :, :, 0]


def point_sampler(coords: Tensor, height: int, width: int) -> Callable[[Tensor], Tensor]:
    """The fastest (N, height, width) -> (N, P) that samples like `sample_points(maps, coords)`.

    coords: (P, 2). float64 is for comparing with other programs, so there it is `sample_points` itself: with the same
    rounding, equally uncertain points are told apart as there.
    """
    if coords.dtype == torch.float64:
        return partial(sample_points, coords=coords)
    return TableSampler(coords, height, width)


class TableSampler:
    """`sample_points` for maps of one size at the points of one image, several times faster on a CPU.

    The maps are laid out as a table with a row of N values for each pixel, with a frame of zeros, and each point is a
    bag of four rows (`F.embedding_bag`). No point has to be tested for validity. One column of zeros serves both sides,
    since after the last column comes the first of the next row: pixel (y, x) is row (y + 1) (W + 1) + x + 1.

    The gradient adds up in a fixed order on every device; that of grid_sample does not on a GPU.
    """

    def __init__(self, coords: Tensor, height: int, width: int):
        """coords: (P, 2), float32 or float64; samples have their dtype."""
        self.height, self.width = height, width
        # With the frame, the centre of the first pixel is at 1. Beyond the frame all is as zero as the frame.
        x = (coords[:, 0] * width + 0.5).clamp(0, width + 1)
        y = (coords[:, 1] * height + 0.5).clamp(0, height + 1)
        left, top = x.floor().clamp(max=width), y.floor().clamp(max=height)
        right_share, bottom_share = x - left, y - top
        left_share, top_share = 1 - right_share, 1 - bottom_share
        first = top.long() * (width + 1) + left.long()
        self.rows = torch.stack((first, first + 1, first + width + 1, first + width + 2), 1)  # (P, 4)
        self.weights = torch.stack(
            (top_share * left_share, top_share * right_share, bottom_share * left_share, bottom_share * right_share), 1
        )
        self._transposed: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, maps: Tensor) -> Tensor:
        """maps: (N, H, W), floating point (differentiable) or bool. Returns (N, P) in the dtype of the points."""
        if maps.shape[1:] != (self.height, self.width):
            raise ValueError(f"maps have shape {tuple(maps.shape)}; expected (N, {self.height}, {self.width})")
        if maps.dtype == torch.bool:
            return self._sample_bool(maps)
        return _TableSample.apply(maps, self)

    def _sample_bool(self, maps: Tensor) -> Tensor:
        """Targets are many and large: only those pixels that are read become floating point."""
        framed = F.pad(maps, (1, 0, 1, 2)).view(torch.uint8).flatten(1)
        corners = framed.index_select(1, self.rows.flatten()).view(-1, *self.rows.shape)  # (N, P, 4)
        return (corners * self.weights).sum(2)

    def sample(self, maps: Tensor) -> Tensor:
        """(N, H, W) -> (N, P), laid out point by point as the bags give it."""
        if not len(maps):  # embedding_bag refuses rows without values
            return self.weights.new_zeros(0, len(self.rows))
        table = maps.new_zeros(self.height + 3, self.width + 1, len(maps), dtype=self.weights.dtype)
        table[1 : self.height + 1, 1:] = maps.permute(1, 2, 0)
        return F.embedding_bag(self.rows, table.flatten(0, 1), mode="sum", per_sample_weights=self.weights).t()

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
        """The points that read each row of the table, where those of a row begin, and their weights."""
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
